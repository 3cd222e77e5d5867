"""Boxes by gVisor, whose kernel is not the host's."""
