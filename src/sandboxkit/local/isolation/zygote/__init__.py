"""Boxes and agents made by fork: a warden that holds namespaces, and a zygote that is ready to be one's agent."""
