"""Mutation testing of the pool's pure decisions: every small wrong change in them must fail a test.

    python tests/mutation/mutate.py [--sample N] [--only MODULE]

Each mutant is one change in one place (a comparison, an operator, a constant, a branch, a statement left out). It is
compiled in place of its module in a forked child, which runs the tests of the policy until the first one fails. Those
that no test notices are printed; each of them has its reason in `survivors.md`, or is a missing test. Fails below 90 %.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
POOL = ROOT / "src" / "sandboxkit" / "pool"
MODULES = ("_journal", "_lifetime", "_matching", "_pace", "_policy", "_slots", "_stock")
TESTS = ("tests/unit/pool/test_policy.py", "tests/unit/pool/test_journal.py", "tests/property/test_pool_machine.py")
LIMIT = 120
"""Seconds that the tests may take with one mutant; a mutant that hangs is noticed."""
WANTED = 0.9

SWAPS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE,), ast.LtE: (ast.Lt,), ast.Gt: (ast.GtE,), ast.GtE: (ast.Gt,), ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,),
    ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip


def places(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Where a module can be changed, and in how many ways: numbers of a node and of a way."""
    kinds = ast.Compare | ast.BinOp | ast.BoolOp | ast.AugAssign | ast.UnaryOp | ast.Constant | ast.Call | ast.Return
    for index, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.If | ast.IfExp):
            yield from ((index, 0), (index, 1))
        elif isinstance(node, kinds | ast.Expr | ast.Assign | ast.Delete):
            yield index, 0


def mutant(tree: ast.Module, index: int, variant: int) -> tuple[int, str, ast.Module] | None:
    """One mutant of a module: its line, what was changed, the whole tree; None if there is nothing to change."""
    changed = copy.deepcopy(tree)
    node = next(node for number, node in enumerate(ast.walk(changed)) if number == index)
    said = _change(node, variant, changed)
    return None if said is None else (getattr(node, "lineno", 0), said, ast.fix_missing_locations(changed))


def _change(node: ast.AST, variant: int, tree: ast.Module) -> str | None:
    """Change one node in its n-th way; None if there is none."""
    if variant == 0:
        before = ast.unparse(node) if isinstance(node, ast.expr | ast.stmt) else ""
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            node.ops[0] = SWAPS[type(node.ops[0])][0]()
            return f"{before} -> {ast.unparse(node)}"
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
            node.op = SWAPS[type(node.op)][0]()
            return f"{before} -> {ast.unparse(node)}"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
            return f"{before} -> without not"
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
            return f"{before} -> {node.value}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            node.func.id = "max" if node.func.id == "min" else "min"
            return f"{before} -> {node.func.id}"
        if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
            node.value = ast.Constant(None)
            return f"{before} -> None"
    if isinstance(node, ast.If | ast.IfExp) and variant < 2:
        said = f"if {ast.unparse(node.test)} -> {variant == 0}"
        node.test = ast.Constant(variant == 0)
        return said
    return _without(node, tree) if variant == 0 else None


def _without(node: ast.AST, tree: ast.Module) -> str | None:
    """Leave a statement out: a call, or an assignment to something that was there before."""
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    is_change = isinstance(node, ast.Assign | ast.AugAssign) and any(
        isinstance(target, ast.Attribute | ast.Subscript)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )
    if not (is_call or is_change or isinstance(node, ast.Delete)):
        return None
    assert isinstance(node, ast.stmt)
    for parent in ast.walk(tree):
        for block in ("body", "orelse"):
            statements = getattr(parent, block, None)
            if isinstance(statements, list) and node in statements:
                if isinstance(parent, ast.FunctionDef) and parent.name == "__init__":
                    return None
                statements[statements.index(node)] = ast.copy_location(ast.Pass(), node)
                return f"without {ast.unparse(node)}"
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a tree instead of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path, self._tree = name, path, tree

    def find_spec(self, fullname: str, path: object, target: object = None) -> object:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)  # type: ignore[arg-type]

    def create_module(self, spec: object) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._tree, str(self._path), "exec"), module.__dict__)


def survives(name: str, path: Path, tree: ast.Module | None) -> bool:
    """Run the tests with a mutant, in a child; whether none of them failed."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            if tree is not None:
                sys.meta_path.insert(0, _Mutated(name, path, tree))
            import pytest

            arguments = ["-x", "-q", "--assert=plain", "-p", "no:randomly", "-p", "no:cacheprovider", "--no-header"]
            code = int(pytest.main([*arguments, *(str(ROOT / test) for test in TESTS)]))
        finally:
            os._exit(code)
    deadline = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)


def main() -> int:
    """Try all mutants, or a sample, and print those that survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="try so many, chosen by chance (with a fixed seed)")
    parser.add_argument("--only", help="one module, such as _stock")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"
    # What no mutant concerns is imported once, here; the children inherit it.
    import hypothesis.stateful
    import pytest  # noqa: F401
    import trio.testing

    assert not [name for name in sys.modules if name.startswith("sandboxkit.pool")]
    assert hypothesis.stateful
    assert trio.testing
    trees = {module: ast.parse((POOL / f"{module}.py").read_text()) for module in MODULES}
    found = [
        (module, *place) for module, tree in trees.items() if options.only in (None, module) for place in places(tree)
    ]
    assert survives("", POOL, None), "the tests fail without any mutant"
    random.Random(1).shuffle(found)
    started, tried, left = time.monotonic(), 0, 0
    for module, index, variant in found:
        if options.sample and tried >= options.sample:
            break
        made = mutant(trees[module], index, variant)
        if made is None:
            continue
        tried += 1
        line, said, tree = made
        if survives(f"sandboxkit.pool.{module}", POOL / f"{module}.py", tree):
            left += 1
            print(f"survived: {module}.py:{line}: {said}", flush=True)
        if tried % 25 == 0:
            print(f"... {tried} tried, {left} survived, {time.monotonic() - started:.0f} s", flush=True)
    share = 1 - left / tried
    print(f"{tried - left} of {tried} killed ({share:.1%}) in {time.monotonic() - started:.0f} s")
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
