"""Makes the synchronous face, `src/sandboxkit/_sync.py`, from the asynchronous classes.

What is copied: names, signatures, defaults, overloads, docstrings. What is made: bodies, all of a few shapes (a call,
an iteration, a value read), each of which goes over `sandboxkit._portal`. Run it with no argument to check, with
`--write` to write.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from sync_faces import FACES, HEADER, HELPERS, WORDS, Face

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
TARGET = SOURCE / "sandboxkit" / "_sync.py"


def generate() -> str:
    """The whole module, as ruff formats it."""
    imports: set[str] = {
        "from typing import IO, Any, ClassVar, Self, TypeVar",
        "from sandboxkit.safefs._fileobj import Mode, opened",
        "from sandboxkit.pool._pool import AsyncNullSandboxPool",
        "from types import TracebackType",
        "from collections.abc import Callable, Generator",
        "from functools import partial",
        "from sandboxkit.runner import with_app, with_apps",
    }
    parts: list[str] = []
    for face in FACES:
        tree = ast.parse((SOURCE / (face.module.replace(".", "/") + ".py")).read_text())
        node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == face.source)
        text, names = _class(face, node)
        parts.append(text)
        imports |= _imports_for(names, tree, face.module)
        imports.add(f"from {face.module} import {face.source}")
    body = "\n\n".join(parts)
    own = {face.target for face in FACES}
    given = {f"from {face.module} import {face.source}" for face in FACES}
    imports = {i for i in imports if i in given or i.rpartition(" ")[2] not in {face.source for face in FACES}}
    lines = sorted(line for line in imports if line.rpartition(" ")[2] not in own)
    source = "\n".join([HEADER, *lines, '\nT = TypeVar("T")\n', body, HELPERS])
    return _formatted(source)


def _class(face: Face, node: ast.ClassDef) -> tuple[str, set[str]]:
    names: set[str] = set()
    members: list[str] = []
    if face.wrapped:
        members.append(_wrapper_init(face))
    for item in node.body:
        if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if item.name == "__init__" and not face.wrapped:
            members.append(_init(face, item))
        elif not item.name.startswith("_") and item.name not in face.skip:
            members.append(_member(face, item))
        else:
            continue
        names |= {n.id for n in ast.walk(_signature_only(item)) if isinstance(n, ast.Name)}
    members.append(
        f'def __repr__(self) -> str:\n    return repr(self._async).replace("<{face.source}", "<{face.target}", 1)'
    )
    members.append(textwrap.dedent(face.extra).strip())
    text = f"class {face.target}:\n" + textwrap.indent(_docstring(face, node), "    ")
    text += textwrap.indent("\n\n".join(m for m in members if m), "    ")
    return text, names


def _wrapper_init(face: Face) -> str:
    lines = [
        f"def __init__(self, portal: _portal.Portal, wrapped: {face.source}) -> None:",
        "    self._portal = portal",
        "    self._async = wrapped",
    ]
    if "files" in face.bodies:
        lines += ["    self._files: SafeFS | None = None", "    self._twin: Any = None"]
    return "\n".join(lines)


def _init(face: Face, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    every = _passed(node, callbacks=False)
    body = textwrap.dedent(face.init).strip().format(all=", ".join(every), rest=", ".join(every[1:]))
    return f"def __init__({ast.unparse(node.args)}) -> None:\n" + textwrap.indent(body, "    ")


def _member(face: Face, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = {ast.unparse(d) for d in node.decorator_list}
    assert node.returns is not None, f"{face.source}.{node.name} says no return type"
    returns = face.returns.get(node.name) or _sync_type(ast.unparse(node.returns))
    head = f"def {node.name}({ast.unparse(node.args)}) -> {returns}:"
    prefix = "".join(f"@{d}\n" for d in sorted(decorators))
    if "overload" in decorators:
        return f"{prefix}{head} ..."
    return prefix + head + "\n" + textwrap.indent(_docstring(face, node) + _body(face, node, decorators), "    ")


def _body(face: Face, node: ast.FunctionDef | ast.AsyncFunctionDef, decorators: set[str]) -> str:
    passed = ", ".join(_passed(node, callbacks=True))
    if node.name in face.bodies:
        return textwrap.dedent(face.bodies[node.name]).strip().format(call=passed)
    if "property" in decorators:
        return f"return self._async.{node.name}"
    target = f"self._async.{node.name}"
    if _is_generator(node):
        return f"return _portal.Call[Any](self._portal).iterate(lambda: {target}({passed}))"
    calls_back = any(word in passed for word in ("call.back", "call.tell"))
    arguments = ", ".join(part for part in (target, passed) if part)
    if isinstance(node, ast.FunctionDef):
        arguments = f"_asked, {arguments}"
    assert node.returns is not None
    returns = ast.unparse(node.returns)
    wraps = [f.source for f in FACES if f.wrapped and re.search(rf"\b{f.source}\b", returns)]
    # Not Call[Any](...): what typing does with that takes longer than all the rest of it.
    first = "call: _portal.Call[Any] = _portal.Call(self._portal)\n" if calls_back else ""
    expression = f"{'call' if calls_back else 'self._portal.call'}({arguments})"
    if returns == "None":
        return f"{first}{expression}"
    if not wraps:
        return f"{first}value: {_sync_type(returns)} = {expression}\nreturn value"
    source = wraps[0]
    target_name = next(f.target for f in FACES if f.source == source)
    value = f"{first}value = {expression}\n"
    if returns == source:
        return f"{value}return {target_name}(self._portal, value)"
    return f"{value}return {target_name}(self._portal, value) if isinstance(value, {source}) else value"


def _passed(node: ast.FunctionDef | ast.AsyncFunctionDef, *, callbacks: bool) -> list[str]:
    """The arguments of the call that is made, callbacks in the form that crosses."""

    def crossing(arg: ast.arg) -> str:
        annotation = ast.unparse(arg.annotation) if arg.annotation else ""
        if callbacks and re.search(r"\bOn(Output|Result|Progress)\b", annotation):
            return f"call.back({arg.arg})"
        if callbacks and "EventHandler" in annotation:
            return f"call.tell({arg.arg})"
        return arg.arg

    plain = [crossing(arg) for arg in node.args.args if arg.arg != "self"]
    return plain + [f"{arg.arg}={crossing(arg)}" for arg in node.args.kwonlyargs]


def _is_generator(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return node.returns is not None and ast.unparse(node.returns).startswith(("AsyncGenerator", "AsyncIterator"))


def _sync_type(annotation: str) -> str:
    found = re.fullmatch(r"Async(?:Generator|Iterator)\[(.+?)(?:, None)?\]", annotation)
    if found:
        return f"Generator[{found[1]}, None, None]"
    for face in FACES:
        annotation = re.sub(rf"\b{face.source}\b", face.target, annotation)
    return annotation


def _docstring(face: Face, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node)
    if not text:
        return ""
    kept: list[str] = []
    for old, new in face.doc:
        # Texts to replace may be wrapped over lines in the source; what replaces them is not translated again.
        pattern = r"\s+".join(map(re.escape, old.split()))
        if re.search(pattern, text):
            text = re.sub(pattern, f"\0{len(kept)}\0", text)
            kept.append(new)
    for pattern, word in WORDS:
        text = re.sub(pattern, word, text)
    text = re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)
    text = re.sub(r"\n\s*\n\s*\n", "\n\n", _rewrapped(text))
    return f'"""{text}\n"""\n' if "\n" in text else f'"""{text}"""\n'


def _rewrapped(text: str) -> str:
    """Fill the paragraphs and entries that a replacement made too wide."""
    lines, done = text.split("\n"), []
    while lines:
        line = lines.pop(0)
        indent = len(line) - len(line.lstrip())
        if len(line) <= 112:
            done.append(line)
            continue
        deeper = indent + 4 if indent else 0
        while lines and lines[0].strip() and len(lines[0]) - len(lines[0].lstrip()) == deeper:
            line += " " + lines.pop(0).strip()
        done += textwrap.wrap(line, 112, subsequent_indent=" " * deeper)
    return "\n".join(done)


def _signature_only(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
    kept = ast.FunctionDef(node.name, node.args, [ast.Pass()], node.decorator_list, node.returns)
    return ast.Module([kept], [])


def _imports_for(names: set[str], tree: ast.Module, module: str) -> set[str]:
    """The imports that the copied signatures need: those of the source, and what the source itself defines."""
    lines: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            lines |= {f"from {node.module} import {a.name}" for a in node.names if (a.asname or a.name) in names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            lines |= {f"from {module} import {t.id}" for t in targets if isinstance(t, ast.Name) and t.id in names}
    return lines


def _formatted(source: str) -> str:
    commands = (
        ["check", "--quiet", "--fix", "--select", "I,F401,UP", "--stdin-filename", str(TARGET), "-"],
        ["format", "--quiet", "--stdin-filename", str(TARGET), "-"],
    )
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command],
            input=source,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if done.returncode:
            sys.exit(f"ruff {command[0]}: {done.stderr or done.stdout}")
        source = done.stdout
    return source


def main() -> int:
    """Write the face, or say how it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="write the file")
    mode.add_argument("--check", action="store_true", help="compare (the default)")
    made = generate()
    if parser.parse_args().write:
        TARGET.write_text(made)
        return 0
    there = TARGET.read_text() if TARGET.exists() else ""
    if there == made:
        return 0
    difference = difflib.unified_diff(there.splitlines(), made.splitlines(), "_sync.py", "generated", lineterm="", n=1)
    print("\n".join(difference))
    print("\nsrc/sandboxkit/_sync.py is not what its generator makes: run `nox -s sync -- --write`.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
