"""The one door to whoever makes sandboxes."""
