"""Running code: contexts, their kernels, and the HTTP interface that E2B's clients use."""

from sandboxkit.local.interpreter._service import InterpreterService

__all__ = ["InterpreterService"]
