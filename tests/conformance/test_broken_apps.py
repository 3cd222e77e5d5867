"""Broken fragments of each kind on the library's own web templates: each gets its error, and the session goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from sandboxkit import Endpoint, Fragment, SandboxPool, Session, Template, TimeoutPolicy
from sandboxkit.errors import AppNotReady, AppStartFailed, DependencyError, SandboxkitError

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(900)]

GOOD = {
    "gradio-developer": "import gradio as gr\nwith gr.Blocks() as demo:\n    gr.Markdown('good')\ndemo.launch()\n",
    "nextjs-developer": "export default function Page() { return <p>good</p>; }\n",
    "streamlit-developer": "import streamlit as st\nst.write('good')\n",
    "vue-developer": "<template><p>good</p></template>\n",
}

ENDS = "console.log('on its way');\nprocess.exit(7);\n"
TOML = ".streamlit/config.toml"


@dataclass(frozen=True)
class Broken:
    """A fragment's text, or its files; its error, and what is said and logged."""

    error: type[SandboxkitError]
    says: str
    logged: str
    code: str | None = None
    files: dict[str, str] | None = None
    is_started: bool = False
    """By this run, after a stop: what is wrong shows at the start alone."""


def launched(how: str) -> str:
    return GOOD["gradio-developer"].replace("launch()", f"launch({how})")


BROKEN: dict[str, dict[str, Broken]] = {
    "gradio-developer": {
        "a syntax error": Broken(AppStartFailed, "no Python that can be read", "SyntaxError", "x = 'one"),
        "a missing dependency": Broken(DependencyError, "not_there_at_all", "line 1", "import not_there_at_all"),
        "it answers 500": Broken(AppNotReady, "the status 500", "ZeroDivisionError", "1 / 0"),
        "a server that dies": Broken(AppStartFailed, "exit code 7", "on its way", "print('on its way')\nexit(7)"),
        "another port": Broken(
            AppNotReady, "what listens is .*7861", "7861", launched("server_port=7861"), is_started=True
        ),
        "another address": Broken(
            AppNotReady, "has to listen on 127.0.0.1", "", launched("server_name='127.0.0.2'"), is_started=True
        ),
    },
    "nextjs-developer": {
        "a syntax error": Broken(AppNotReady, "the status 500", "pages/index.tsx", "export default function P() {"),
        "a missing dependency": Broken(
            DependencyError,
            "not-there-at-all",
            "not-there-at-all",
            f"import 'not-there-at-all';\n{GOOD['nextjs-developer']}",
        ),
        "it answers 500": Broken(
            AppNotReady, "the status 500", "no good", "export default function P() { throw new Error('no good'); }"
        ),
        "a server that dies": Broken(
            AppStartFailed,
            "ended",
            "on its way",
            files={"next.config.ts": ENDS},
            is_started=True,
        ),
    },
    "streamlit-developer": {
        "a syntax error": Broken(AppStartFailed, "no Python that can be read", "SyntaxError", "x = 'one"),
        "a missing dependency": Broken(DependencyError, "not_there_at_all", "line 1", "import not_there_at_all"),
        "a server that dies": Broken(
            AppStartFailed,
            "ended with exit code",
            "developmentMode",
            files={TOML: "[global]\ndevelopmentMode = true\n"},
            is_started=True,
        ),
    },
    "vue-developer": {
        "a syntax error": Broken(AppNotReady, "the status 500", "app.vue", "<template><p>one</template>"),
        "a missing dependency": Broken(
            DependencyError,
            "not-there-at-all",
            "not-there-at-all",
            f"<script setup>\nimport 'not-there-at-all'\n</script>\n{GOOD['vue-developer']}",
        ),
        "it answers 500": Broken(
            AppNotReady,
            "the status 500",
            "no good",
            f"<script setup>\nthrow new Error('no good')\n</script>\n{GOOD['vue-developer']}",
        ),
        "a server that dies": Broken(
            AppStartFailed,
            "ended",
            "on its way",
            files={"nuxt.config.ts": ENDS},
            is_started=True,
        ),
    },
}
CASES = [pytest.param(name, kind, id=f"{name}-{kind}") for name, kinds in BROKEN.items() for kind in kinds]


@pytest.fixture(scope="module")
def pool(web_engine: Endpoint) -> Iterator[SandboxPool]:
    with SandboxPool(endpoint=web_engine, timeouts=TimeoutPolicy(ready=45)) as pool:
        yield pool


def good(session: Session) -> Any:
    done = session.run(Fragment(template=session.template, code=GOOD[session.template]))
    assert done.app is not None
    return done.app


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_broken_app_has_its_error(pool: SandboxPool, name: str, kind: str) -> None:
    """On a server that runs, or is started by this run: the error has the log's tail; what was good before is good
    again after the next run, and nothing is left when the session is closed."""
    broken = BROKEN[name][kind]
    with pool.session(None, template=name) as session:
        app = good(session)
        before = {path: session.files.read_text(path) for path in broken.files or {}}
        if broken.is_started:
            app.stop()
        wrong = Fragment(template=name, code=broken.code, files=broken.files)
        with pytest.raises(broken.error, match=f"(?s){broken.says}") as caught:
            session.run(wrong)
        assert broken.logged in caught.value.log_tail  # type: ignore[attr-defined]
        for path, text in before.items():
            session.files.write_text(path, text)
        assert good(session).url
    assert pool.stats()["live"] == 0


@pytest.mark.parametrize("name", GOOD)
def test_what_cannot_be_installed_is_told(web_engine: Endpoint, name: str) -> None:
    """The installer's own words are the log's tail; the app that ran goes on."""
    limits = TimeoutPolicy(ready=60)
    wrong = Fragment(template=name, code=GOOD[name], dependencies=("sandboxkit-no-such-package",))
    with (
        SandboxPool(endpoint=web_engine, network="packages", timeouts=limits) as pool,
        pool.session(None, template=name) as session,
    ):
        good(session)
        with pytest.raises(DependencyError, match="exit code 1") as caught:
            session.run(wrong)
        assert "sandboxkit-no-such-package" in caught.value.log_tail
        assert good(session).url


@pytest.mark.parametrize("name", GOOD)
def test_an_installation_that_never_ends(web_engine: Endpoint, name: str) -> None:
    """It is stopped at its limit, with all its processes."""
    limits = TimeoutPolicy(install=2, ready=60)
    endless = Fragment.model_validate(
        {"template": name, "code": GOOD[name], "install_command": "echo looking; sleep 12345"}
    )
    with SandboxPool(endpoint=web_engine, timeouts=limits) as pool, pool.session(None, template=name) as session:
        with pytest.raises(DependencyError, match=r"TimeoutPolicy\.install") as caught:
            session.run(endless, allow_install_command=True)
        assert "looking" in caught.value.log_tail
        seen = session.run_command("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
        assert "sleep 1234" + "5" not in seen
        assert good(session).url
    assert Template.get(name).install is not None
