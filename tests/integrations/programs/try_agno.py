"""Agno: the functions of `E2BTools`, as its agents call them."""

from __future__ import annotations

import json
from pathlib import Path

from agno.tools.e2b import E2BTools
from agno.tools.function import FunctionCall

tools = E2BTools(timeout=60, sandbox_options={"envs": {"FROM": "create"}})
try:
    done = FunctionCall(function=tools.functions["run_python_code"], arguments={"code": "print('hello')\n6 * 7"})
    assert done.execute().status == "success"
    said = json.loads(done.result)
    assert "hello\\n" in said[0], said
    assert said[1] == "Result 1: 42", said
    assert "ZeroDivisionError" in tools.run_python_code("1 / 0")
    tools.run_python_code("import matplotlib.pyplot as plt; _ = plt.bar(['a', 'b'], [1, 2]); plt.show()")
    picture = tools.download_png_result(agent=None, output_path="chart.png")
    assert Path("chart.png").read_bytes().startswith(b"\x89PNG"), picture
    print("code")

    assert json.loads(tools.run_command("echo $FROM; echo err >&2")) == ["STDOUT:\ncreate\n", "STDERR:\nerr\n"]
    assert "exited with code 3" in json.loads(tools.run_command("exit 3"))["message"]
    assert json.loads(tools.stream_command("echo one; echo two"))[0].startswith("STDOUT: one")
    running = tools.run_background_command("sleep 60")
    assert tools.kill_background_command(running) == "Background command terminated successfully."
    print("commands")

    Path("data.csv").write_text("x\n1\n")
    assert tools.upload_file("data.csv", "given/data.csv") == "/home/user/given/data.csv"
    assert tools.read_file_content("given/data.csv") == "x\n1\n"
    assert tools.write_file_content("given/more.txt", "grün") == "/home/user/given/more.txt"
    assert "- data.csv (File, 4 bytes)" in tools.list_files("given")
    assert "/home/user/none" in json.loads(tools.read_file_content("none"))["message"]
    print("files")

    assert tools.set_sandbox_timeout(120) == "120"
    assert str(8000) in tools.run_server("python3 -m http.server 8000", 8000)
    assert json.loads(tools.run_command("curl -s localhost:8000/given/data.csv")) == ["STDOUT:\nx\n1\n"]
    print("server")
finally:
    assert json.loads(tools.shutdown_sandbox())["content"] is True
print("all")
