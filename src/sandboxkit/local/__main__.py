"""`python -m sandboxkit.local`: the engine as a child process of an application."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from typing import Any

from sandboxkit._types import Endpoint
from sandboxkit.errors import SandboxkitError
from sandboxkit.local._child import error_report, missing_extra
from sandboxkit.local._config import EngineConfig


def main() -> int:
    """Serve until the parent's pipe or a signal says to end; 0 for an orderly end, 1 where it could not start."""
    parser = argparse.ArgumentParser(prog="python -m sandboxkit.local", description="Run the local engine.")
    parser.add_argument("--config-json", default="{}", help="the engine's values, as EngineConfig.to_json writes them")
    parser.add_argument(
        "--child",
        action="store_true",
        help="end with the end-of-file of standard input, and report on standard output in one line of JSON",
    )
    arguments = parser.parse_args()
    try:
        config = EngineConfig.from_json(arguments.config_json)
        try:
            from sandboxkit.local._serve import serve
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error
        if not arguments.child:
            return serve(config)
        return serve(config, on_ready=_report_endpoint, parent_pipe=sys.stdin.fileno())
    except SandboxkitError as error:
        if arguments.child:
            _report({"error": error_report(error)})
        else:
            print(f"sandboxkit: {error}", file=sys.stderr)
        return 1


def _report_endpoint(endpoint: Endpoint) -> None:
    _report(
        {
            "endpoint": {
                "api_key": endpoint.api_key,
                "api_url": endpoint.api_url,
                "sandbox_url": endpoint.sandbox_url,
            }
        }
    )


def _report(report: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started us is gone, and the pipe's end ends us
        os.write(sys.stdout.fileno(), json.dumps(report).encode() + b"\n")
    # Nothing is said there any more, and nobody reads: whoever prints by mistake must not fill the pipe.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
