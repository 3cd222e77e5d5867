"""The one way to check this project: `nox` runs the quick sessions, `nox -s NAME` one of them.

Works with uv where it is installed, else with virtualenv. `nox --no-venv --no-install` uses the environment that is
active, as `.ci/run` does.
"""

from __future__ import annotations

import os
import shutil

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "sync", "tests"]


# What tests of the full tier use besides: the packages of those whom we say to fit, and what drives a browser or
# reads files of sandboxes by URL.
OTHERS = (
    "anthropic",
    "fastapi",
    "google-genai",
    "openai",
    "openapi-spec-validator",
    "pandas",
    "playwright",
    "pyarrow",
    "schemathesis",
    "websockets",
)


def _can_install() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _apt(session: nox.Session, package: str) -> None:
    """Install one of Debian's packages; where that fails, the tests that need it are skipped, and say so."""
    session.run("apt-get", "update", "-qq", external=True, success_codes=range(256))
    session.run("apt-get", "install", "-y", "-qq", package, external=True, success_codes=range(256))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and who may import what."""
    session.install("-e", ".[test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, on the library and on the tests of its types."""
    session.install("-e", ".[test]")
    session.run("mypy")


@nox.session
def sync(session: nox.Session) -> None:
    """Check that the synchronous face, and the table of what of E2B works, are what their generators make; `-- --write`
    makes them anew."""
    session.install("-e", ".[test]")
    session.run("python", ".ci/generate_sync.py", *session.posargs)
    session.run("python", ".ci/generate_coverage.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests that need nothing but the package index."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """Everything, with long Hypothesis profiles; run before a capability is called done."""
    session.install("-e", ".[test]", *OTHERS)
    if not shutil.which("chromium") and _can_install():
        session.log("installing chromium for tests/browser ...")
        _apt(session, "chromium")
    session.run("pytest", "--full", *session.posargs, env={"HYPOTHESIS_PROFILE": "full"})
    if not session.posargs:
        session.run(
            "pytest", "--full", "tests/faces", "tests/unit/test_portal.py", env={"SANDBOXKIT_TEST_LOOP": "asyncio"}
        )
        gvisor(session)


@nox.session
def gvisor(session: nox.Session) -> None:
    """What is tried on bubblewrap, tried on gVisor, but for what `tests/gvisor-exceptions.toml` names."""
    if not shutil.which("runsc") and _can_install():
        _apt(session, "runsc")
    if not shutil.which(os.environ.get("SANDBOXKIT_RUNSC") or "runsc"):
        session.skip("no runsc here (gVisor), and it could not be installed")
    session.install("-e", ".[test]")
    rooms = session.posargs or ["tests/security", "tests/conformance", "tests/survival"]
    session.run("pytest", "--full", "--timeout", "180", *rooms, env={"SANDBOXKIT_TEST_ISOLATION": "gvisor"})


@nox.session
def integrations(session: nox.Session) -> None:
    """What agent frameworks make of E2B, made of the engine; their environments are made first, once and kept."""
    session.install("-e", ".[test]")
    session.run("pytest", "--full", "tests/integrations", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the pool's pure decisions in every small way, and see that a test notices (`-- --sample 300`)."""
    session.install("-e", ".[test]")
    session.run("python", "tests/mutation/mutate.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into `site/`, strictly."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Print how long things take, as ratios to what the machine can do."""
    session.install("-e", ".[test,fast]")
    session.run("python", "tests/bench/bench.py", *session.posargs)
    session.run("python", "tests/bench/start.py", *session.posargs)
    session.run("python", "tests/bench/safefs.py")
    session.run("python", "tests/bench/wire.py", *session.posargs)
    session.run("python", "tests/bench/apps.py")
    session.run("python", "tests/bench/pool.py", *session.posargs)
