"""Boxes: namespaces, limits, root file system, and the link to the agent in each."""
