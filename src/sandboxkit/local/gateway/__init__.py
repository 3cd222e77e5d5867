"""The HTTP/1.1 listener: who is meant by a request, and may it pass."""
