"""The fake sandbox's Python: runs a cell inside this process, for tests only, without any isolation.

A cell is compiled with top-level `await` and carried out in the event loop itself: no thread, no subprocess, so runs
are deterministic and follow a virtual clock. To stay interruptible, each loop at the cell's top level gets a
checkpoint, and `time.sleep(...)` there becomes an awaited sleep; a loop inside a function cannot be interrupted.

`print`, `open`, `sys`, `os` and `time` are the fake sandbox's own; of the rest of the library, only pure modules can
be imported. That keeps honest code from touching the machine. It does not stop hostile code.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import io
import traceback
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import anyio
import anyio.lowlevel

from sandboxkit._types import DEFAULT_ROOT, Execution, ExecutionError, OutputMessage, Result
from sandboxkit.errors import KernelDied, NotFound
from sandboxkit.provider._base import OnOutput, OnResult
from sandboxkit.provider._output import OutputKeeper, Stream, result_size
from sandboxkit.testing._files import Tree

IMPORTABLE = frozenset(
    {"base64", "bisect", "cmath", "collections", "copy", "csv", "dataclasses", "datetime", "decimal", "enum"}
    | {"fractions", "functools", "hashlib", "heapq", "html", "io", "itertools", "json", "math", "operator", "random"}
    | {"re", "statistics", "string", "struct", "textwrap", "types", "typing", "unicodedata", "uuid", "zlib"}
)


class _Abort(BaseException):
    """Ends a cell past any `except Exception` in it; carries what the caller gets instead of a result."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class _Interruptible(ast.NodeTransformer):
    """Adds checkpoints to the loops, and awaits the sleeps, of a cell's top level."""

    def _leave_alone(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = _leave_alone
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _leave_alone

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._with_checkpoint(node)

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._with_checkpoint(node)

    def _with_checkpoint(self, node: ast.While | ast.For) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, ast.parse("await __checkpoint__()").body[0])
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) == "time.sleep":
            return ast.Await(ast.Call(ast.Name("__sleep__", ast.Load()), node.args, node.keywords))
        return node


class FakePython:
    """One interpreter with its variables."""

    def __init__(self, tree: Tree, envs: Mapping[str, str]) -> None:
        self._tree = tree
        self._envs = dict(envs)
        self._lock = anyio.Lock()
        self._cell = _Cell(OutputKeeper(1), None, None, None)
        self.restart()

    def restart(self) -> None:
        """Forget all variables."""
        self._count = 0
        self._environ = dict(self._envs)
        self._modules = {"sys": self._sys(), "os": self._os(), "time": self._time()}
        own = {"print": self._print, "open": self._open, "__import__": self._import}
        self._names: dict[str, Any] = {
            "__name__": "__main__",
            "__builtins__": vars(builtins) | own,
            "__checkpoint__": lambda: self._cell.checkpoint(),
            "__sleep__": anyio.sleep,
            "display": lambda value: self._cell.display(value),
        }

    async def run(
        self,
        code: str,
        envs: Mapping[str, str],
        *,
        keeper: OutputKeeper,
        on_stdout: OnOutput | None,
        on_stderr: OnOutput | None,
        on_result: OnResult | None,
    ) -> Execution:
        """Carry out one cell; cells queue."""
        async with self._lock:
            self._count += 1
            cell = self._cell = _Cell(keeper, on_stdout, on_stderr, on_result)
            before = dict(self._environ)
            self._environ |= envs
            try:
                error = await cell.run(code, self._names)
            except _Abort as abort:
                if isinstance(abort.reason, KernelDied):
                    self.restart()
                raise abort.reason from None
            finally:
                for name in envs:
                    self._environ.pop(name, None)
                self._environ |= {name: before[name] for name in envs if name in before}
            return Execution(
                stdout=keeper.stdout,
                stderr=keeper.stderr,
                results=tuple(cell.results),
                error=error,
                count=self._count,
            )

    def _print(self, *values: object, sep: str = " ", end: str = "\n", file: Any = None, flush: bool = False) -> None:
        text = sep.join(str(value) for value in values) + end
        if file is None:
            self._cell.write("stdout", text)
        else:
            file.write(text)

    def _open(self, path: str, mode: str = "r", **_: object) -> io.IOBase:
        absolute = path if path.startswith("/") else f"{DEFAULT_ROOT}/{path}"
        if "r" in mode:
            try:
                data = self._tree.read(absolute)
            except NotFound as error:
                raise FileNotFoundError(2, "No such file or directory", path) from error
            return io.BytesIO(data) if "b" in mode else io.StringIO(data.decode())
        tree, binary = self._tree, "b" in mode
        before = tree.read(absolute) if "a" in mode and tree.exists(absolute) else b""

        class Written(io.BytesIO):
            def write(self, data: Any) -> int:
                return super().write(data if binary else data.encode())

            def close(self) -> None:
                if not self.closed:
                    tree.write(absolute, before + self.getvalue())
                super().close()

        return Written()

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name in self._modules:
            return self._modules[name]
        if name.partition(".")[0] not in IMPORTABLE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return importlib.__import__(name, *args, **kwargs)

    def _sys(self) -> types.ModuleType:
        module = types.ModuleType("sys")

        def stream(name: Literal["stdout", "stderr"]) -> types.SimpleNamespace:
            return types.SimpleNamespace(write=lambda text: self._cell.write(name, text), flush=lambda: None)

        def leave(code: object = None) -> None:
            raise SystemExit(code)

        vars(module).update(stdout=stream("stdout"), stderr=stream("stderr"), exit=leave)
        return module

    def _os(self) -> types.ModuleType:
        module = types.ModuleType("os")

        def die(*_: object) -> None:
            raise _Abort(KernelDied("The interpreter ended while it ran the code; its variables are gone."))

        vars(module).update(
            _exit=die, kill=die, abort=die, getpid=lambda: 1, getcwd=lambda: DEFAULT_ROOT, environ=self._environ
        )
        return module

    def _time(self) -> types.ModuleType:
        module = types.ModuleType("time")

        def sleep(seconds: float) -> None:
            raise RuntimeError("The fake interpreter can sleep at the top level of a cell only.")

        vars(module).update(sleep=sleep, time=anyio.current_time, monotonic=anyio.current_time)
        return module


class _Cell:
    """One run: what it prints and displays, and who is told."""

    def __init__(
        self,
        keeper: OutputKeeper,
        on_stdout: OnOutput | None,
        on_stderr: OnOutput | None,
        on_result: OnResult | None,
    ) -> None:
        self._keeper = keeper
        self._handlers = {"stdout": on_stdout, "stderr": on_stderr}
        self._on_result = on_result
        self._pending: list[Awaitable[object]] = []
        self.results: list[Result] = []

    async def run(self, code: str, names: dict[str, Any]) -> ExecutionError | None:
        """Carry the code out; the exception that it raised, described."""
        cancelled = anyio.get_cancelled_exc_class()
        try:
            body, last = _compile(code)
            for part, is_value in ((body, False), (last, True)):
                if part is None:
                    continue
                value = eval(part, names)
                if inspect.iscoroutine(value):
                    value = await value
                if is_value and value is not None:
                    self.display(value, is_main_result=True)
        except (_Abort, cancelled, GeneratorExit):
            raise
        except BaseException as error:
            await self.checkpoint()
            return _described(error)
        await self.checkpoint()
        return None

    async def checkpoint(self) -> None:
        """Let others run, after the callbacks that gave something to await."""
        pending, self._pending = self._pending, []
        for waiting in pending:
            try:
                await waiting
            except Exception as error:
                raise _Abort(error) from error
        await anyio.lowlevel.checkpoint()

    def write(self, stream: Literal["stdout", "stderr"], text: str) -> int:
        if text:
            self._keep(stream, text)
            self._tell(self._handlers[stream], OutputMessage(text, stream))
        return len(text)

    def display(self, value: object, *, is_main_result: bool = False) -> None:
        as_html = getattr(value, "_repr_html_", None)
        result = Result(
            text=repr(value)[1:-1] if isinstance(value, str) else repr(value),  # without quotes, as E2B's
            html=as_html() if callable(as_html) else None,
            json=value if isinstance(value, dict | list) else None,
            is_main_result=is_main_result,
        )
        self._keep("result", result.text or "", result_size(result))
        self.results.append(result)
        self._tell(self._on_result, result)

    def _keep(self, stream: Stream, text: str, size: int | None = None) -> None:
        try:
            self._keeper.add(stream, text, size=size)
        except Exception as error:
            raise _Abort(error) from error

    def _tell(self, handler: Callable[[Any], object] | None, message: object) -> None:
        if handler is None:
            return
        try:
            answer = handler(message)
        except Exception as error:
            raise _Abort(error) from error
        if inspect.isawaitable(answer):
            self._pending.append(answer)


def _compile(code: str) -> tuple[types.CodeType, types.CodeType | None]:
    """The cell's statements, and its last expression, if it ends with one."""
    tree = ast.parse(code, "<cell>")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    turn, flags = _Interruptible(), ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    body = compile(ast.fix_missing_locations(turn.visit(tree)), "<cell>", "exec", flags=flags)
    if not isinstance(last, ast.Expr):
        return body, None
    value = ast.fix_missing_locations(ast.Expression(turn.visit(last.value)))
    return body, compile(value, "<cell>", "eval", flags=flags)


def _described(error: BaseException) -> ExecutionError:
    stack = traceback.TracebackException.from_exception(error)
    stack.stack = traceback.StackSummary.from_list([f for f in stack.stack if f.filename == "<cell>"])
    return ExecutionError(type(error).__name__, str(error), "".join(stack.format()))
