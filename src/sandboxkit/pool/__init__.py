"""Keeps sandboxes warm, capped and keyed: the policy decides, the pool acts."""
