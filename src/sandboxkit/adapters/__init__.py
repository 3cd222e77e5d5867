"""One module per framework, imported late; none yet."""
