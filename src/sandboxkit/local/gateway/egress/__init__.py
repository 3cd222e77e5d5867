"""The way out of a sandbox: a proxy in the engine, the rules that it goes by, and nothing beside it."""
