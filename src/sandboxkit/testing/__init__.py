"""The in-memory provider and the conformance suite that every provider passes."""
