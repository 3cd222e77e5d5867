"""Mutation testing of the pool's pure decisions: every small wrong change in them must fail a test.

    python tests/mutation/mutate.py [--sample N] [--only MODULE] [--jobs N]

Each mutant is one change in one place (a comparison, an operator, a constant, a branch, a statement left out). It is
compiled in place of its module in a child, forked from this process once all else is imported, which runs the tests of
the policy until the first one fails: the exact examples, which kill most within a second, then the state machine. Those
that no test notices are printed; each of them has its reason in `survivors.md`, or is a missing test. Fails below 90 %.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib.abc
import importlib.util
import io
import itertools
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
POOL = ROOT / "src" / "sandboxkit" / "pool"
MODULES = ("_journal", "_lifetime", "_matching", "_pace", "_policy", "_slots", "_stock")
TESTS = (
    "tests/unit/pool/test_policy.py",
    "tests/unit/pool/test_policy_ends.py",
    "tests/unit/pool/test_policy_pace.py",
    "tests/unit/pool/test_journal.py",
    "tests/property/test_pool_policy.py",
    "tests/property/test_pool_machine.py",
)
MOST_CPU, MOST_MEMORY = 40, 2 * 1024**3
"""Seconds of work and bytes that the tests may take with one mutant: one that never ends is noticed by them."""
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


def warm_up() -> None:
    """Import once, here, what no mutant concerns; the children inherit it, and import the pool's own modules anew."""
    assert run_tests("--collect-only") == 0, "the tests cannot be collected"
    for name in [name for name in sys.modules if name.startswith(("sandboxkit.pool", "tests."))]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # so that the children need not look through it


def run_tests(*options: str) -> int:
    """Run the tests in this process, in silence."""
    import pytest

    nowhere = io.StringIO()
    options = (*options, "-x", "-q", "--assert=plain", "-p", "no:randomly", "-p", "no:cacheprovider", "--no-header")
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return int(pytest.main([*options, *(str(ROOT / test) for test in TESTS)]))


def start(mutated: _Mutated | None) -> int:
    """Run the tests in a child of ours until the first one fails, with a mutant or without; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        # Of its own work, not of the clock: a busy machine kills no mutant.
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU, MOST_CPU))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        if mutated is not None:
            sys.meta_path.insert(0, mutated)
        code = run_tests()
    finally:
        os._exit(code)


def main() -> int:
    """Try all mutants, or a sample, and print those that survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="try so many, chosen by chance (with a fixed seed)")
    parser.add_argument("--only", help="one module, such as _stock")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at the same time")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"
    warm_up()
    if os.waitstatus_to_exitcode(os.waitpid(start(None), 0)[1]) != 0:
        print("the tests fail without any mutant")
        return 1
    trees = {module: ast.parse((POOL / f"{module}.py").read_text()) for module in MODULES}
    found = [
        (module, *place) for module, tree in trees.items() if options.only in (None, module) for place in places(tree)
    ]
    random.Random(1).shuffle(found)
    mutants = (  # made one by one: a fork of a large process takes long
        (module, made) for module, *place in found if (made := mutant(trees[module], *place)) is not None
    )
    waiting = itertools.islice(mutants, options.sample)
    tried, survivors, running, started = 0, list[str](), dict[int, str](), time.monotonic()
    while True:
        while len(running) < options.jobs and (following := next(waiting, None)) is not None:
            module, (line, said, tree) = following
            path = POOL / f"{module}.py"
            running[start(_Mutated(f"sandboxkit.pool.{module}", path, tree))] = f"{module}.py:{line}: {said}"
        if not running:
            break
        child, status = os.wait()
        told, tried = running.pop(child), tried + 1
        if os.waitstatus_to_exitcode(status) == 0:
            survivors.append(told)
            print(f"survived: {told}", flush=True)
        if tried % 50 == 0:
            print(f"... {tried} tried, {len(survivors)} survived, {time.monotonic() - started:.0f} s", flush=True)
    share = 1 - len(survivors) / tried
    print(f"{tried - len(survivors)} of {tried} killed ({share:.1%}) in {time.monotonic() - started:.0f} s")
    return 0 if share >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
