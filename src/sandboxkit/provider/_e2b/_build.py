"""The program that builds one template folder by the SDK's own builder: `python -m sandboxkit.provider._e2b._build`.

A process of its own, since the folder's `template.py` is its author's code: it may change what it likes here. Where
the service is comes from the environment (E2B_API_KEY, E2B_API_URL); what happens goes to standard output, a line of
JSON each: {"level", "message"}, and at the end {"built": {...}} or {"error": {"type", "message"}}.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import IO, Any


def main() -> int:
    """Build `sys.argv[1]`, a JSON object: folder, name, cpu, memory_mb, force."""
    wish = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):  # what template.py prints is none of our lines
        return _build(wish, sys.__stdout__)


def _build(wish: dict[str, Any], out: IO[str] | None) -> int:
    def say(what: dict[str, Any]) -> None:
        print(json.dumps(what), file=out, flush=True)

    sys.path.insert(0, wish["folder"])
    sys.dont_write_bytecode = True
    try:
        import template as definition  # type: ignore[import-not-found]
        from e2b import Template

        built = Template.build(
            definition.template,
            wish["name"],
            cpu_count=wish["cpu"],
            memory_mb=wish["memory_mb"],
            skip_cache=wish["force"],
            on_build_logs=lambda entry: say({"level": entry.level, "message": entry.message}),
        )
    except Exception as error:
        say({"error": {"type": type(error).__name__, "message": str(error)}})
        return 1
    say({"built": {"template": built.template_id, "build": built.build_id}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
