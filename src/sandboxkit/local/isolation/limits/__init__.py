"""What holds a box's limits: control groups of either version, or what there is without them, and what it uses."""
