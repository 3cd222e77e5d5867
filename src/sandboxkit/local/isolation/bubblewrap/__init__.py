"""Boxes by bubblewrap, or by a warden with bubblewrap's words."""
