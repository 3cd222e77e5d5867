"""Which system calls a box may make."""
