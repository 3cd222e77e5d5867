"""Templates on this machine: building them once, finding them built."""
