"""Files confined to a root inside a sandbox, at a named level."""
