"""The unmodified SDK runs code on the engine: what E2B's documentation shows, from a real box."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from e2b import NotFoundException, SandboxException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Execution, Sandbox
from e2b_code_interpreter.charts import (
    BarChart,
    BoxAndWhiskerChart,
    ChartType,
    LineChart,
    PieChart,
    ScatterChart,
    SuperChart,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def sandbox(sdk: dict[str, str]) -> Iterator[Sandbox]:
    """One sandbox for the tests that leave it as they found it."""
    with Sandbox.create(timeout=300, envs={"OF_THE_SANDBOX": "yes"}, **sdk) as made:
        yield made


@pytest.fixture
def own(sdk: dict[str, str]) -> Iterator[Sandbox]:
    """A sandbox of the test's own."""
    with Sandbox.create(timeout=120, **sdk) as made:
        yield made


def chart_of(execution: Execution) -> Any:
    """The chart of the one result that has one."""
    assert execution.error is None, execution.error
    (result,) = [result for result in execution.results if result.chart is not None]
    assert result.png
    return result.chart


def test_the_last_expression_is_the_text_of_the_execution(own: Sandbox) -> None:
    """Variables live on between calls, executions are counted, and the value of the last line is the text."""
    assert own.run_code("x = 1").execution_count == 1
    execution = own.run_code("x += 1; x")
    assert execution.text == "2"
    assert execution.execution_count == 2
    assert [result.is_main_result for result in execution.results] == [True]


def test_prints_are_lines_of_the_logs(sandbox: Sandbox) -> None:
    """Standard output and standard error are kept apart and whole."""
    execution = sandbox.run_code("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert execution.logs.stdout == ["out\n"]
    assert execution.logs.stderr == ["err\n"]
    assert execution.results == []


def test_callbacks_hear_each_kind_of_event(sandbox: Sandbox) -> None:
    """Output, results and errors reach the callbacks while the code runs."""
    heard: list[tuple[str, object]] = []
    sandbox.run_code(
        "import time\nfor i in range(3):\n    print(i)\n    time.sleep(0.1)\ndisplay('shown')\n1 / 0",
        on_stdout=lambda message: heard.append(("out", message.line)),
        on_result=lambda result: heard.append(("result", result.text)),
        on_error=lambda error: heard.append(("error", error.name)),
    )
    printed, others = [text for kind, text in heard if kind == "out"], heard[-2:]
    assert "".join(map(str, printed)) == "0\n1\n2\n"
    assert len(printed) >= 3  # a line may come in pieces
    assert others == [("result", "shown"), ("error", "ZeroDivisionError")]


def test_an_exception_is_data(sandbox: Sandbox) -> None:
    """An exception has its name, value and traceback, and the sandbox goes on."""
    error = sandbox.run_code("def f():\n    return 1 / 0\nf()").error
    assert error is not None
    assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
    assert "return 1 / 0" in error.traceback
    assert sandbox.run_code("'on'").text == "on"


def test_signals_are_as_every_python_has_them(sandbox: Sandbox) -> None:
    """A pipe without a reader, and a file that may grow no more, are exceptions; programs have these signals anew."""
    code = (
        "import os, resource\nreader, writer = os.pipe()\nos.close(reader)\ntry: os.write(writer, b'x')\n"
        "except BrokenPipeError: print('broken pipe')\n"
        "if (pid := os.fork()) == 0:\n    resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))\n"
        "    try:\n        with open('/tmp/large', 'wb', 0) as file: file.write(b'x'), file.write(b'x')\n"
        "    except OSError: os._exit(7)\n    os._exit(8)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "!sh -c 'trap \"echo caught\" PIPE XFSZ; kill -PIPE $$; kill -XFSZ $$'"  # what is ignored cannot be trapped
    )
    printed = sandbox.run_code(code)
    assert printed.error is None
    assert "".join(printed.logs.stdout).split() == ["broken", "pipe", "7", "caught", "caught"]


def test_environment_variables_of_the_sandbox_and_of_a_call(sandbox: Sandbox) -> None:
    """The sandbox's variables are in every call; a call's own are in that call alone."""
    code = "import os; os.environ.get('OF_THE_SANDBOX'), os.environ.get('OF_THE_CALL')"
    assert sandbox.run_code(code, envs={"OF_THE_CALL": "it's"}).text == "('yes', \"it's\")"
    assert sandbox.run_code(code).text == "('yes', None)"


def test_the_interpreter_is_the_user_in_its_home(sandbox: Sandbox) -> None:
    """Code runs as `user` in /home/user, with the template's own interpreter and no path of the host."""
    execution = sandbox.run_code("import getpass, os, sys; getpass.getuser(), os.getcwd(), sys.prefix, sys.base_prefix")
    assert execution.text is not None
    *where, base = eval(execution.text)
    assert where == ["user", "/home/user", "/opt/sandboxkit/env"]
    assert base in ("/opt/sandboxkit/python", "/usr")  # the system's own Python needs no other place


def test_the_kernel_is_the_python_that_its_modules_were_made_for(sandbox: Sandbox) -> None:
    """A kernel forked from a zygote is the interpreter that a command would start, not one of the machine's that has
    the same name; so the modules in C that belong to it load."""
    code = "import ctypes, os, sqlite3, ssl, sys\nprint(sys.version)\nassert 'LD_ORIGIN_PATH' not in os.environ"
    execution = sandbox.run_code(code)
    assert execution.error is None, execution.error
    assert execution.logs.stdout == [sandbox.commands.run("python3 -c 'import sys; print(sys.version)'").stdout]


def test_the_kernel_hides_itself_and_its_wire(sandbox: Sandbox) -> None:
    """Children of the code inherit no descriptor of ours, and cannot read the kernel's memory."""
    code = "import subprocess; subprocess.run(['ls', '/proc/self/fd'], capture_output=True, text=True).stdout.split()"
    assert sandbox.run_code(code).results[0].json == ["0", "1", "2", "3"]  # 3 is `ls` reading the directory
    execution = sandbox.run_code("import os\n!cat /proc/{os.getpid()}/environ")
    assert "Permission denied" in "".join(execution.logs.stderr)


def test_commands_and_code_share_the_files(sandbox: Sandbox) -> None:
    """What a cell writes, `files` and `commands` see, and the other way round."""
    sandbox.run_code("open('shared.txt', 'w').write('from code')")
    assert sandbox.files.read("shared.txt") == "from code"
    assert sandbox.commands.run("cat shared.txt").stdout == "from code"
    sandbox.files.write("helper.py", "value = 5")
    assert sandbox.run_code("import helper; helper.value").text == "5"


@pytest.mark.parametrize(
    ("code", "form", "value"),
    [
        ("HTML('<b>x</b>')", "html", "<b>x</b>"),
        ("Markdown('# x')", "markdown", "# x"),
        ("Latex('$x$')", "latex", "$x$"),
        ("Javascript('1 + 1')", "javascript", "1 + 1"),
        ("JSON({'a': [1, None]})", "json", {"a": [1, None]}),
        ("{'a': 1}", "json", {"a": 1}),
        ("[1, 2.5, 'x']", "json", [1, 2.5, "x"]),
    ],
)
def test_each_form_of_a_result_has_its_field(sandbox: Sandbox, code: str, form: str, value: object) -> None:
    """A value's MIME forms arrive in the SDK's fields."""
    execution = sandbox.run_code(f"from IPython.display import *\n{code}")
    assert execution.results[0][form] == value
    assert form in execution.results[0].formats()


def test_a_form_without_a_field_is_extra(sandbox: Sandbox) -> None:
    """MIME types that E2B has no name for are handed on as they are."""
    execution = sandbox.run_code("display({'application/x-own': 'x', 'text/plain': 'y'}, raw=True)")
    assert execution.results[0].extra == {"application/x-own": "x"}


def test_a_data_frame_is_text_html_and_columns(sandbox: Sandbox) -> None:
    """A table arrives as text, as HTML, and as data by column: dates in ISO 8601, missing numbers as null."""
    code = """
import pandas as pd
pd.DataFrame({"n": [1.5, None], "when": pd.to_datetime(["2026-01-02", "2026-01-03"]), "s": ["a", "b"]})
"""
    result = sandbox.run_code(code).results[0]
    assert result.html is not None
    assert "<table" in result.html
    assert result.data == {
        "n": [1.5, None],
        "when": ["2026-01-02T00:00:00", "2026-01-03T00:00:00"],
        "s": ["a", "b"],
    }


def test_figures_are_shown_at_the_end_of_the_cell(sandbox: Sandbox) -> None:
    """A figure that nobody showed is a result, once, and one that was closed is none."""
    execution = sandbox.run_code("import matplotlib.pyplot as plt\nfigure = plt.figure()\n_ = plt.plot([1, 2])")
    assert [bool(result.png) for result in execution.results] == [True]
    assert sandbox.run_code("plt.plot([1, 2])\nplt.savefig('figure.png')\nplt.close()").results == []
    assert sandbox.files.read("figure.png", format="bytes")[:4] == b"\x89PNG"


def test_line_chart(sandbox: Sandbox) -> None:
    """A line chart arrives with its labels and points."""
    code = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [4.0, 5.0, 6.5], label="speed")
plt.xlabel("Time (s)")
plt.ylabel("Way [m]")
plt.title("Run")
plt.show()
"""
    chart = chart_of(sandbox.run_code(code))
    assert isinstance(chart, LineChart)
    assert (chart.title, chart.x_label, chart.x_unit, chart.y_unit) == ("Run", "Time (s)", "s", "m")
    assert [(line.label, list(line.points)) for line in chart.elements] == [("speed", [(1, 4.0), (2, 5.0), (3, 6.5)])]


def test_scatter_chart_with_a_logarithmic_axis(sandbox: Sandbox) -> None:
    """A scatter chart names its scale."""
    code = "import matplotlib.pyplot as plt\nplt.scatter([1, 10], [2, 3])\nplt.xscale('log')\nplt.show()"
    chart = chart_of(sandbox.run_code(code))
    assert isinstance(chart, ScatterChart)
    assert (chart.x_scale, chart.y_scale) == ("log", "linear")


def test_bar_chart(sandbox: Sandbox) -> None:
    """A bar chart arrives with a value for each label."""
    chart = chart_of(sandbox.run_code("import matplotlib.pyplot as plt\nplt.bar(['a', 'b'], [3, 4])\nplt.show()"))
    assert isinstance(chart, BarChart)
    assert [(bar.label, float(bar.value)) for bar in chart.elements] == [("a", 3.0), ("b", 4.0)]


def test_pie_chart(sandbox: Sandbox) -> None:
    """A pie chart arrives with the angle of each slice."""
    chart = chart_of(
        sandbox.run_code("import matplotlib.pyplot as plt\nplt.pie([1, 3], labels=['a', 'b'])\nplt.show()")
    )
    assert isinstance(chart, PieChart)
    assert [(slice_.label, slice_.angle) for slice_ in chart.elements] == [("a", 90.0), ("b", 270.0)]


def test_box_and_whisker_chart(sandbox: Sandbox) -> None:
    """A box plot arrives with the median of each box, also by the argument that Matplotlib renamed."""
    arguments = "labels=['a', 'b'], patch_artist=True"
    code = f"import matplotlib.pyplot as plt\nplt.boxplot([[1, 2, 3], [4, 5, 9]], {arguments})\nplt.show()"
    chart = chart_of(sandbox.run_code(code))
    assert isinstance(chart, BoxAndWhiskerChart)
    assert [(box.label, box.median) for box in chart.elements] == [("a", 2.0), ("b", 5.0)]


def test_super_chart(sandbox: Sandbox) -> None:
    """Subplots arrive as one chart with one element each."""
    code = (
        "import matplotlib.pyplot as plt\nfigure, (one, two) = plt.subplots(1, 2)\n"
        "one.plot([1, 2])\ntwo.bar(['a'], [1])\nfigure.suptitle('Both')\nplt.show()"
    )
    chart = chart_of(sandbox.run_code(code))
    assert isinstance(chart, SuperChart)
    assert chart.title == "Both"
    assert [element.type for element in chart.elements] == [ChartType.LINE, ChartType.BAR]


def test_pictures_are_shown_where_they_are_saved_or_shown(sandbox: Sandbox) -> None:
    """Saving a picture to a file shows it, and so does `show()`; writing into a buffer does not."""
    code = "import io\nfrom PIL import Image\npicture = Image.new('RGB', (4, 4), 'red')\n"
    for action, shown in (("save('p.png')", 1), ("show()", 1), ("save(io.BytesIO(), 'PNG')", 0)):
        execution = sandbox.run_code(f"{code}picture.{action}")
        assert execution.error is None
        assert len([result for result in execution.results if result.png]) == shown


def test_the_libraries_are_there(sandbox: Sandbox) -> None:
    """Every library that the template promises can be imported, and so can what they need."""
    names = [
        "matplotlib",
        "numpy",
        "openpyxl",
        "pandas",
        "PIL",
        "plotly",
        "requests",
        "sklearn",
        "scipy",
        "seaborn",
        "sympy",
    ]
    execution = sandbox.run_code("\n".join(f"import {name}" for name in names))
    assert execution.error is None, execution.error


def test_magics_and_shell_lines(sandbox: Sandbox) -> None:
    """`!`, `%` and `%%` do what they do in a notebook."""
    assert sandbox.run_code("!echo out; echo err >&2").logs.stdout == ["out\n"]
    assert sandbox.run_code("lines = !printf 'a\\nb'\nlines").results[0].json == ["a", "b"]
    assert sandbox.run_code("%%bash\necho from bash").logs.stdout == ["from bash\n"]
    assert sandbox.run_code("%cd -q /tmp\nwhere = %pwd\n%cd -q /home/user\nwhere").text == "/tmp"


def test_a_timeout_interrupts_the_code_and_keeps_the_variables(own: Sandbox) -> None:
    """Past its time limit the call raises, the code is interrupted, and the sandbox is as useful as before."""
    own.run_code("kept = 1")
    with pytest.raises(TimeoutException):
        own.run_code("import time; time.sleep(60)", timeout=1)
    assert own.run_code("kept", timeout=40).text == "1"


def test_contexts(own: Sandbox) -> None:
    """Contexts have their own variables and directory, and can be listed, restarted and removed."""
    default = own.list_code_contexts()
    # Both languages' default contexts are there from the start, as on E2B.
    expected = [("python", "/home/user"), ("javascript", "/home/user")]
    assert [(context.language, context.cwd) for context in default] == expected
    context = own.create_code_context(cwd="/tmp", language="python")
    assert (context.language, context.cwd) == ("python", "/tmp")
    own.run_code("y = 1", context=context)
    assert own.run_code("import os; (y, os.getcwd())", context=context).text == "(1, '/tmp')"
    missing = own.run_code("y").error
    assert missing is not None
    assert missing.name == "NameError"
    own.restart_code_context(context)
    assert own.run_code("'y' in dir()", context=context).text == "False"
    own.remove_code_context(context)
    assert [found.id for found in own.list_code_contexts()] == [found.id for found in default]
    with pytest.raises(NotFoundException, match="not found"):
        own.run_code("1", context=context)
    with pytest.raises(NotFoundException):
        own.restart_code_context(context.id)


def test_a_language_that_is_not_there_is_refused(sandbox: Sandbox) -> None:
    """The error names the language."""
    with pytest.raises(SandboxException, match="ruby"):
        sandbox.run_code("puts 1", language="ruby")
    with pytest.raises(SandboxException, match="ruby"):
        sandbox.create_code_context(language="ruby")


def test_connecting_again_finds_the_variables(own: Sandbox, sdk: dict[str, str]) -> None:
    """Another client of the same sandbox has the same interpreter."""
    own.run_code("x = 5")
    again = Sandbox.connect(own.sandbox_id, **sdk)
    assert again.run_code("x").text == "5"


def test_a_kernel_that_dies_is_an_error_and_the_sandbox_goes_on(own: Sandbox) -> None:
    """Code that kills its interpreter is told so; the next call has a fresh one."""
    execution = own.run_code("import os; print('last'); os._exit(1)")
    assert execution.logs.stdout == ["last\n"]
    assert execution.error is not None
    assert execution.error.name == "ContextRestarting"
    assert own.run_code("1 + 1").text == "2"


def test_killing_the_sandbox_ends_the_call(sdk: dict[str, str]) -> None:
    """A call that runs when its sandbox is killed raises what the SDK raises for that."""
    sandbox = Sandbox.create(timeout=60, **sdk)
    started = threading.Event()
    killer = threading.Thread(target=lambda: (started.wait(20), sandbox.kill()))
    killer.start()
    with pytest.raises(TimeoutException):
        sandbox.run_code("print('on')\nimport time; time.sleep(60)", on_stdout=lambda message: started.set())
    killer.join()


def test_the_asynchronous_sdk_runs_code_in_contexts_side_by_side(sdk: dict[str, str]) -> None:
    """Calls in two contexts run at the same time; calls in one run in turn."""

    async def scenario() -> None:
        sandbox = await AsyncSandbox.create(timeout=120, **sdk)
        try:
            contexts = [await sandbox.create_code_context() for _ in range(2)]
            # Each waits for the file that the other one makes.
            code = """
import os, time
open("{mine}", "w").close()
while not os.path.exists("{other}"):
    time.sleep(0.005)
"""
            both = await asyncio.gather(
                sandbox.run_code(code.format(mine="a", other="b"), context=contexts[0], timeout=50),
                sandbox.run_code(code.format(mine="b", other="a"), context=contexts[1], timeout=50),
            )
            assert [execution.error for execution in both] == [None, None]
            await sandbox.run_code("seen = []")
            await asyncio.gather(*(sandbox.run_code(f"seen.append({i})") for i in range(5)))
            assert (await sandbox.run_code("sorted(seen)")).text == "[0, 1, 2, 3, 4]"
        finally:
            await sandbox.kill()

    asyncio.run(scenario())
