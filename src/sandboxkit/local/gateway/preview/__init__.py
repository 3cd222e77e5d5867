"""Previews: what a sandbox serves on its own ports, passed on to browsers and programs of this machine."""
