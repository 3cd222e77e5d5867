"""The unmodified SDK runs JavaScript, TypeScript, bash and what else Jupyter knows, by real kernels in a real box."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from e2b import SandboxException, TimeoutException
from e2b_code_interpreter import Execution, Sandbox

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EXEC_SYNC = "require('child_process').execSync('sleep 60')"
SCRIPTS = ["javascript", "typescript"]


@pytest.fixture(scope="module")
def sandbox(sdk: dict[str, str]) -> Iterator[Sandbox]:
    """One sandbox for the whole module: what a test declares has a name of its own, or a context."""
    with Sandbox.create(timeout=600, envs={"OF_THE_SANDBOX": "yes"}, **sdk) as made:
        yield made


def fine(execution: Execution) -> Execution:
    """An execution that raised nothing."""
    assert execution.error is None, execution.error
    return execution


# -- JavaScript and TypeScript ------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", SCRIPTS)
def test_the_last_expression_is_the_text_and_variables_live_on(sandbox: Sandbox, language: str) -> None:
    """`let`, `const`, functions and classes live on between calls, and may be declared again."""
    fine(sandbox.run_code("const kept = 20; function twice(n) { return n * 2 }", language=language))
    first = fine(sandbox.run_code("twice(kept) + 2", language=language))
    assert first.text == "42"
    second = fine(sandbox.run_code("const kept = 1; class Point { x = kept }; new Point().x", language=language))
    assert second.text == "1"
    assert first.execution_count is not None
    assert second.execution_count == first.execution_count + 1


@pytest.mark.parametrize("language", SCRIPTS)
def test_output_is_in_the_logs(sandbox: Sandbox, language: str) -> None:
    """`console.log` is standard output, `console.error` standard error; nothing is a result."""
    execution = fine(sandbox.run_code("console.log('out', [1]); console.error('err')", language=language))
    assert execution.logs.stdout == ["out [ 1 ]\n"]
    assert execution.logs.stderr == ["err\n"]
    assert execution.results == []


@pytest.mark.parametrize("language", SCRIPTS)
def test_what_is_thrown_is_data(sandbox: Sandbox, language: str) -> None:
    """An error has its name, its message, and a traceback that names the cell's lines and none of ours."""
    code = "function deep() {\n  throw new RangeError('too far')\n}\ndeep()"
    error = sandbox.run_code(code, language=language).error
    assert error is not None
    assert (error.name, error.value) == ("RangeError", "too far")
    assert error.traceback.splitlines()[0] == "RangeError: too far"
    assert ":2:9" in error.traceback
    assert "kernel_node" not in error.traceback
    assert "node:" not in error.traceback
    broken = sandbox.run_code("let = = 5", language=language).error
    assert broken is not None
    assert broken.name == "SyntaxError"
    thrown = sandbox.run_code("throw 'a text'", language=language).error
    assert thrown is not None
    assert thrown.value == "a text"
    assert fine(sandbox.run_code("'on'", language=language)).text == "on"


@pytest.mark.parametrize("language", SCRIPTS)
def test_await_works_at_the_top_level(sandbox: Sandbox, language: str) -> None:
    """A cell may await, and a promise as the last value is awaited, and told if it fails."""
    waits = "const slept = await new Promise((resolve) => setTimeout(() => resolve('slept'), 20)); slept"
    assert fine(sandbox.run_code(waits, language=language)).text == "slept"
    assert fine(sandbox.run_code("(async () => 5)()", language=language)).text == "5"
    error = sandbox.run_code("Promise.reject(new TypeError('no'))", language=language).error
    assert error is not None
    assert (error.name, error.value) == ("TypeError", "no")


@pytest.mark.parametrize("language", SCRIPTS)
def test_modules_are_imported_in_each_way(sandbox: Sandbox, language: str) -> None:
    """`import`, `import()` and `require` find what Node brings, files beside the cell, and installed packages."""
    sandbox.files.write("/home/user/beside.mjs", "export const here = 'beside'; export default 7")
    sandbox.files.write("/home/user/node_modules/small/package.json", '{"name": "small", "main": "index.js"}')
    sandbox.files.write("/home/user/node_modules/small/index.js", "module.exports = { is: 'small' }")
    code = (
        "import fs, { existsSync as exists } from 'fs'\n"
        "import * as path from 'node:path'\n"
        "import seven, { here } from './beside.mjs'\n"
        "import small from 'small'\n"
        "const os = await import('os')\n"
        "const text = `import x from 'y'`;\n"
        "[typeof fs.readFileSync, exists('/'), path.join('a', 'b'), seven, here, small.is, os.EOL.length, text, "
        "require('small').is]"
    )
    shown = fine(sandbox.run_code(code, language=language)).results[0].json
    assert shown == ["function", True, "a/b", 7, "beside", "small", 1, "import x from 'y'", "small"]
    exported = "export function half(n) { return n / 2 }\nexport default half\nhalf(4)"
    assert fine(sandbox.run_code(exported, language=language)).text == "2"
    error = sandbox.run_code("import nothing from 'not-there'", language=language).error
    assert error is not None
    assert "not-there" in error.value


@pytest.mark.parametrize("language", SCRIPTS)
def test_values_show_themselves_in_several_forms(sandbox: Sandbox, language: str) -> None:
    """Data comes as JSON beside its text, HTML and images by Jupyter's symbol or `$$`, and `display` in between."""
    data = fine(sandbox.run_code("({ a: [1, { b: 'é' }] })", language=language)).results[0]
    assert data.json == {"a": [1, {"b": "é"}]}
    assert data.text == "{ a: [ 1, { b: 'é' } ] }"
    own = (
        "({ [Symbol.for('Jupyter.display')]: () => ({ 'text/plain': 'plain', 'text/html': '<b>é</b>', 'x/y': 'z' }) })"
    )
    shown = fine(sandbox.run_code(own, language=language)).results[0]
    assert (shown.text, shown.html, shown.extra, shown.is_main_result) == ("plain", "<b>é</b>", {"x/y": "z"}, True)
    by_api = fine(sandbox.run_code("$$.png(Buffer.from('PNG')); display('first'); 2", language=language)).results
    assert [result.png for result in by_api] == ["UE5H", None, None]
    assert [result.text for result in by_api] == [None, "first", "2"]
    assert [result.is_main_result for result in by_api] == [True, False, True]


def test_typescript_is_understood(sandbox: Sandbox) -> None:
    """Types, interfaces, generics, enums and parameter properties; E2B's one kernel takes them as JavaScript, too."""
    code = (
        "interface Named { name: string }\n"
        "enum Level { Low = 1, High }\n"
        "class Greeter<T extends Named> { constructor(private readonly of: T) {}\n"
        "  greet(): string { return `hi ${this.of.name}, ${Level.High}` } }\n"
        "const made: Greeter<Named> = new Greeter({ name: 'you' })\n"
        "made.greet()"
    )
    assert fine(sandbox.run_code(code, language="ts")).text == "hi you, 2"
    assert fine(sandbox.run_code("const typed: number = 3; typed as unknown", language="js")).text == "3"
    error = sandbox.run_code("const typed: = 3", language="ts").error
    assert error is not None
    assert error.name == "SyntaxError"


def test_languages_have_their_names_defaults_and_contexts(sandbox: Sandbox) -> None:
    """`js` and `ts` are short names, Python is the default, and each language has one context until more are made."""
    fine(sandbox.run_code("var shared = 'javascript'", language="js"))
    assert fine(sandbox.run_code("shared", language="javascript")).text == "javascript"
    error = sandbox.run_code("shared", language="ts").error
    assert error is not None
    assert error.name == "ReferenceError"
    assert fine(sandbox.run_code("import sys; sys.executable")).text == "/opt/sandboxkit/env/bin/python3"
    assert {"python", "javascript"} <= {context.language for context in sandbox.list_code_contexts()}


def test_contexts_of_a_language_are_apart(sandbox: Sandbox) -> None:
    """A context has variables, a directory and a life of its own."""
    sandbox.files.make_dir("/home/user/elsewhere")
    one = sandbox.create_code_context(language="js", cwd="/home/user/elsewhere")
    two = sandbox.create_code_context(language="js")
    assert (one.language, one.cwd) == ("javascript", "/home/user/elsewhere")
    fine(sandbox.run_code("globalThis.mine = 1", context=one))
    assert fine(sandbox.run_code("process.cwd()", context=one)).text == "/home/user/elsewhere"
    assert fine(sandbox.run_code("typeof mine + process.cwd()", context=two)).text == "undefined/home/user"
    sandbox.restart_code_context(one)
    assert fine(sandbox.run_code("typeof mine", context=one)).text == "undefined"
    sandbox.remove_code_context(one)
    assert one.id not in [context.id for context in sandbox.list_code_contexts()]
    with pytest.raises(SandboxException, match=f"{one.id} not found"):
        sandbox.run_code("1", context=one)
    sandbox.remove_code_context(two)


@pytest.mark.parametrize("language", [*SCRIPTS, pytest.param("bash", marks=pytest.mark.full)])
def test_environment_variables_of_the_sandbox_and_of_a_call(sandbox: Sandbox, language: str) -> None:
    """The sandbox's variables are in every call; a call's own are in that call alone, whatever they hold."""
    value = 'it\'s $HOME "é"\nnew'
    code = "console.log([process.env.OF_THE_SANDBOX, process.env.OF_THE_CALL].join('|'))"
    if language == "bash":
        code = 'echo "$OF_THE_SANDBOX|$OF_THE_CALL"'
    once = fine(sandbox.run_code(code, language=language, envs={"OF_THE_CALL": value}))
    assert "".join(once.logs.stdout) == f"yes|{value}\n"
    assert "".join(fine(sandbox.run_code(code, language=language)).logs.stdout) == "yes|\n"


@pytest.mark.parametrize(
    "code",
    ["while (true) {}", "await new Promise(() => {})", "await 1; for (;;) {}", EXEC_SYNC],
)
def test_an_interrupt_leaves_the_context_usable(sandbox: Sandbox, code: str) -> None:
    """A client that gives up ends its code, in a loop as well as where it waits; variables stay."""
    context = sandbox.create_code_context(language="javascript")
    fine(sandbox.run_code("const before = 'kept'", context=context))
    with pytest.raises(TimeoutException):
        sandbox.run_code(code, context=context, timeout=0.5)
    started = time.monotonic()
    assert fine(sandbox.run_code("before", context=context)).text == "kept"
    assert time.monotonic() - started < 5
    sandbox.remove_code_context(context)


def test_a_kernel_that_ends_comes_back(sandbox: Sandbox) -> None:
    """A killed kernel is told by E2B's name for it, one that leaves ends its cell; the next code has a fresh one."""
    context = sandbox.create_code_context(language="javascript")
    fine(sandbox.run_code("var lost = 1", context=context))
    error = sandbox.run_code("process.kill(process.pid, 'SIGKILL'); while (true) {}", context=context).error
    assert error is not None
    assert error.name == "ContextRestarting"
    assert fine(sandbox.run_code("typeof lost", context=context)).text == "undefined"
    assert sandbox.run_code("console.log('bye'); process.exit(3)", context=context).logs.stdout == ["bye\n"]
    assert fine(sandbox.run_code("1 + 1", context=context)).text == "2"
    sandbox.remove_code_context(context)


def test_what_fails_beside_a_cell_ends_nothing(sandbox: Sandbox) -> None:
    """An exception of a timer or of a forgotten promise goes to standard error; the variables stay."""
    code = (
        "const stays = 1; setTimeout(() => { throw new Error('of a timer') }, 1)\n"
        "Promise.reject(new Error('forgotten'))\n"
        "await new Promise((resolve) => setTimeout(resolve, 50))"
    )
    told = "".join(fine(sandbox.run_code(code, language="js")).logs.stderr)
    assert "of a timer" in told
    assert "forgotten" in told
    assert fine(sandbox.run_code("stays", language="js")).text == "1"


def test_long_output_and_large_results_come_whole(sandbox: Sandbox) -> None:
    """Nothing of 100,000 lines is lost, a text of 8 MiB is a result, and one that is too large is an error."""
    lines = fine(sandbox.run_code("for (let i = 0; i < 100000; i++) console.log(`line ${i}`)", language="js"))
    assert "".join(lines.logs.stdout) == "".join(f"line {number}\n" for number in range(100_000))
    large = fine(sandbox.run_code("'é'.repeat(4 * 1024 * 1024)", language="js"))
    assert large.text == "é" * 4 * 1024 * 1024
    error = sandbox.run_code("'x'.repeat(65 * 1024 * 1024)", language="js").error
    assert error is not None
    assert error.name == "ResultTooLarge"


def test_contexts_of_several_languages_run_at_once(sandbox: Sandbox) -> None:
    """Kernels do not wait for one another: each cell here ends only after the other has begun."""
    meetings = {
        "js": (
            # By no name: other tests' cells have made theirs in this context, constants among them.
            "require('fs').writeFileSync('/tmp/js', '')\n"
            "while (!require('fs').existsSync('/tmp/python')) await new Promise((r) => setTimeout(r, 20))\n"
            "'js'"
        ),
        "python": (
            "import pathlib, time; pathlib.Path('/tmp/python').touch()\n"
            "while not pathlib.Path('/tmp/js').exists(): time.sleep(0.02)\n"
            "'python'"
        ),
    }
    with ThreadPoolExecutor(2) as threads:
        texts = list(
            threads.map(lambda item: sandbox.run_code(item[1], language=item[0], timeout=30).text, meetings.items())
        )
    assert texts == ["js", "python"]


def test_node_is_there_for_commands(sandbox: Sandbox) -> None:
    """`node` and `npm` are commands, as in E2B's template."""
    assert sandbox.commands.run("node -e 'console.log(40 + 2)'").stdout == "42\n"
    assert sandbox.commands.run("npm --version").stdout.strip()


# -- Jupyter's kernels --------------------------------------------------------------------------------------------


def test_a_language_without_a_kernel_is_refused_by_name(sandbox: Sandbox) -> None:
    """It is a 400 that names the language and what there is instead; a name that is none is refused, too."""
    before = len(sandbox.list_code_contexts())
    for language in ("klingon", "x-nobody-has-it"):
        with pytest.raises(SandboxException, match=f"'{language}' is not supported here: no Jupyter kernel") as refused:
            sandbox.run_code("1", language=language)
        assert "400 Bad Request" in str(refused.value)
        with pytest.raises(SandboxException, match=f"'{language}' is not supported here"):
            sandbox.create_code_context(language=language)
    with pytest.raises(SandboxException, match="no language's name"):
        sandbox.run_code("1", language="../../bin/sh")
    assert len(sandbox.list_code_contexts()) == before


def test_bash_runs_by_its_jupyter_kernel(sandbox: Sandbox) -> None:
    """Output, variables, functions and the directory stay between calls; a status is an error, as on E2B."""
    fine(sandbox.run_code("kept=4; cd /tmp; twice() { echo $(($1 * 2)); }", language="bash"))
    assert fine(sandbox.run_code("twice $kept; pwd", language="bash")).logs.stdout == ["8\n/tmp\n"]
    error = sandbox.run_code("echo before; (exit 3)", language="bash").error
    assert error is not None
    assert error.value == "3"
    many = "".join(fine(sandbox.run_code("seq 1 5000", language="bash")).logs.stdout)
    assert many == "".join(f"{number}\n" for number in range(1, 5001))


def test_what_a_kernel_publishes_waits_for_a_bridge_that_is_late(sandbox: Sandbox) -> None:
    """A busy machine loses no line: here the bridge stands still while bash publishes far more than a socket takes."""
    bridge = "$(ps -o ppid= -p $PPID | tr -d ' ')"
    code = f"kill -STOP {bridge}; seq 1 30000; kill -CONT {bridge}"
    many = "".join(fine(sandbox.run_code(code, language="bash")).logs.stdout)
    assert many.splitlines() == [str(number) for number in range(1, 30_001)]


@pytest.mark.full
def test_a_jupyter_kernel_or_its_bridge_that_is_killed_comes_back(sandbox: Sandbox) -> None:
    """Either end takes the other with it, is told as a restart, and the next code has a fresh kernel."""
    context = sandbox.create_code_context(language="bash")
    fine(sandbox.run_code("lost=1", context=context))
    error = sandbox.run_code("kill -9 $PPID; sleep 60", context=context).error
    assert error is not None
    assert error.name == "ContextRestarting"
    assert fine(sandbox.run_code('echo "[$lost]"', context=context)).logs.stdout == ["[]\n"]
    sandbox.commands.run("pkill -9 -f '[k]ernel.py bash'")
    after = fine(sandbox.run_code("echo again", context=context))
    assert after.logs.stdout == ["again\n"]
    assert "fresh one" in "".join(after.logs.stderr)
    sandbox.remove_code_context(context)
    sandbox.commands.run("pkill -9 -f '[k]ernel.py bash' || true")
    for _ in range(50):
        if "bash_kernel" not in sandbox.commands.run("ps ax -o args || true").stdout:
            break
        time.sleep(0.1)
    else:
        pytest.fail("kernels are left without their bridges")


@pytest.mark.full
def test_an_interrupt_reaches_a_jupyter_kernel(sandbox: Sandbox) -> None:
    """A client that gives up ends bash's command; variables stay."""
    context = sandbox.create_code_context(language="bash")
    fine(sandbox.run_code("before=kept", context=context))
    with pytest.raises(TimeoutException):
        sandbox.run_code("sleep 60", context=context, timeout=0.5)
    assert fine(sandbox.run_code("echo $before", context=context)).logs.stdout == ["kept\n"]
    sandbox.remove_code_context(context)


@pytest.mark.full
def test_any_kernel_that_jupyter_knows_is_a_language(sandbox: Sandbox) -> None:
    """Who installs a kernel in a sandbox, as R's or Java's, runs its code by its name, rich results and all."""
    argv = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Other", "language": "python", "env": {"OF_THE_SPEC": "yes"}}
    sandbox.files.write("/home/user/.local/share/jupyter/kernels/other/kernel.json", json.dumps(spec))
    first = fine(sandbox.run_code("import os; x = 5; os.environ['OF_THE_SPEC']", language="other"))
    assert first.text == "yes"
    assert first.execution_count == 1
    shown = fine(
        sandbox.run_code("from IPython.display import HTML, display\ndisplay(HTML('<b>'))\nx", language="other")
    )
    assert [result.html for result in shown.results] == ["<b>", None]
    assert shown.text == "5"
    error = sandbox.run_code("import sys; print('err', file=sys.stderr); 1 / 0", language="other").error
    assert error is not None
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    with pytest.raises(SandboxException, match="`env_vars` of a call are not supported for 'other'"):
        sandbox.run_code("1", language="other", envs={"A": "b"})


@pytest.mark.full
@pytest.mark.skipif(
    not Path("/usr/share/jupyter/kernels/ir").is_dir(), reason="no R kernel here (apt-get install r-cran-irkernel)"
)
def test_r_runs_where_the_machine_has_its_kernel(sandbox: Sandbox) -> None:
    """Values, tables, plots, conditions and variables, by IRkernel."""
    fine(sandbox.run_code("kept <- data.frame(a = 1:2)", language="r"))
    shown = fine(sandbox.run_code("kept; plot(1:3); cat('out\\n')", language="R"))
    assert "<table" in (shown.results[0].html or "")
    assert shown.results[1].png
    assert shown.logs.stdout == ["out\n"]
    error = sandbox.run_code("stop('no')", language="r").error
    assert error is not None
    assert "no" in error.value
    assert fine(sandbox.run_code("Sys.getenv('A')", language="r", envs={"A": "it's"})).results[0].text == '[1] "it\'s"'
    assert fine(sandbox.run_code("Sys.getenv('A')", language="r")).results[0].text == '[1] ""'


@pytest.mark.full
@pytest.mark.timeout(180)
def test_denos_own_kernel_is_a_language(sandbox: Sandbox, tmp_path: Path) -> None:
    """A kernel that is no Python program: Deno's, installed in the sandbox from its wheel."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "deno"]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("no wheel of Deno from the package index")
    (wheel,) = tmp_path.iterdir()
    sandbox.files.write(f"/tmp/{wheel.name}", wheel.read_bytes(), request_timeout=120)
    sandbox.commands.run(f"pip install -q --no-index --no-deps /tmp/{wheel.name}", timeout=120)
    sandbox.commands.run("deno jupyter --install", envs={"DENO_NO_UPDATE_CHECK": "1"}, timeout=60)
    assert fine(sandbox.run_code("const x: number = await Promise.resolve(4); x", language="deno")).text == "4"
    assert fine(sandbox.run_code("console.log(x + 1)", language="deno")).logs.stdout == ["5\n"]
    error = sandbox.run_code("throw new TypeError('no')", language="deno").error
    assert error is not None
    assert (error.name, error.value) == ("TypeError", "no")
