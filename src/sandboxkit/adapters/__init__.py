"""One module per framework, imported late."""
