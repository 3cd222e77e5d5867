"""The engine's end of the agent's socket: requests out, answers and descriptors in, by either transport."""
