"""Programs that run INSIDE the box: the agent (standard library only) and the Python kernel."""
