"""Carries fragments out: a pure plan, then the steps."""
