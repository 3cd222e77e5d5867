"""Templates of E2B's older kind: what an e2b.toml and its Dockerfile say, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxkit.errors import ConfigurationError, UnsupportedOption
from sandboxkit.template import Template

STREAMLIT = """
# This is a config for E2B sandbox template.
team_id = "460355b3-4f64-48f9-9a16-4442817f79f5"
memory_mb = 4_096
cpu_count = 4
start_cmd = "cd /home/user && . .venv/bin/activate && streamlit run app.py"
dockerfile = "e2b.Dockerfile"
template_name = "Streamlit-Old"
template_id = "abc"
"""
PYTHON = """FROM python:3.9-slim
# pip install nothing
RUN pip3 install --no-cache-dir -r reqs.txt streamlit pandas==2.0 'numpy>=1' \\
    seaborn && pip install plotly
WORKDIR /home/user
COPY . /home/user
"""
NODE = """FROM node:21-slim
RUN apt-get update && apt-get install -y curl
RUN npx create-next-app@14.2.20 . --ts && npm install posthog-js @types/node
EXPOSE 3001/tcp
"""


def write(place: Path, toml: str, dockerfile: str | None, name: str = "e2b.Dockerfile") -> Path:
    """Both files; the path of the first."""
    (place / "e2b.toml").write_text(toml)
    if dockerfile is not None:
        (place / name).write_text(dockerfile)
    return place / "e2b.toml"


def test_a_python_template(tmp_path: Path) -> None:
    """Name, resources and start command are the file's, libraries the Dockerfile's, port and file the command's."""
    found = Template.from_e2b_toml(write(tmp_path, STREAMLIT, PYTHON))
    assert (found.id, found.cpu, found.memory_mb, found.language) == ("streamlit-old", 4, 4096, "python")
    assert found.libraries == ("streamlit", "pandas", "numpy", "seaborn", "plotly")
    assert (found.file, found.port, found.install) == ("app.py", 8501, "pip install")
    assert found.start == "cd /home/user && . .venv/bin/activate && streamlit run app.py"


def test_a_node_template(tmp_path: Path) -> None:
    """Generators and npm tell the libraries, EXPOSE the port."""
    toml = 'template_name = "next"\nstart_cmd = "/compile_page.sh"\ndockerfile = "other"\n'
    found = Template.from_e2b_toml(write(tmp_path, toml, NODE, "other"))
    assert found.libraries == ("next", "react", "react-dom", "posthog-js", "@types/node")
    assert (found.file, found.port, found.language, found.cpu) == ("pages/index.tsx", 3001, "javascript", 2)


def test_a_template_without_a_start_command_runs_cells(tmp_path: Path) -> None:
    """Without one, there is no app and no port."""
    found = Template.from_e2b_toml(write(tmp_path, 'template_id = "abc"\n', PYTHON))
    assert (found.id, found.start, found.port, found.file) == ("abc", None, None, "script.py")


def test_what_is_not_said_can_be_given(tmp_path: Path) -> None:
    """A start command that says neither its file nor its port is refused until both are passed."""
    path = write(tmp_path, 'template_name = "x"\nstart_cmd = "./serve"\n', PYTHON)
    with pytest.raises(ConfigurationError, match="pass file="):
        Template.from_e2b_toml(path)
    with pytest.raises(ConfigurationError, match="pass port="):
        Template.from_e2b_toml(path, file="main.rb")
    found = Template.from_e2b_toml(path, file="main.rb", port=4567)
    assert (found.file, found.port) == ("main.rb", 4567)


@pytest.mark.parametrize(
    ("toml", "dockerfile", "says"),
    [
        ("template_name = ", PYTHON, "not TOML"),
        ("memory_mb = 1024\n", PYTHON, "neither template_name nor template_id"),
        ('template_name = "x"\n', None, "cannot be read"),
        ('template_name = "x"\n', "RUN true\n", "no FROM"),
        ("template_name = 3\n", PYTHON, "template_name has to be text"),
        ('template_name = "x"\ncpu_count = "4"\n', PYTHON, "cpu_count has to be a whole number"),
        ('template_name = "x"\nmemory_mb = true\n', PYTHON, "memory_mb has to be a whole number"),
        ('template_name = "x"\nmemory_mb = 1\n', PYTHON, "does not make a template"),
        ('template_name = "no good"\n', PYTHON, "does not make a template"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, dockerfile: str | None, says: str) -> None:
    """Each fault of the two files is a ConfigurationError that says where it is."""
    with pytest.raises(ConfigurationError, match=says):
        Template.from_e2b_toml(write(tmp_path, toml, dockerfile))


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    """No file, and a file that is no text."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Template.from_e2b_toml(tmp_path / "e2b.toml")
    (tmp_path / "e2b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not TOML"):
        Template.from_e2b_toml(tmp_path / "e2b.toml")


def test_an_unknown_field_is_not_passed_over(tmp_path: Path) -> None:
    """Somebody may rely on it."""
    with pytest.raises(UnsupportedOption) as caught:
        Template.from_e2b_toml(write(tmp_path, 'template_name = "x"\nnovel = 1\n', PYTHON))
    assert caught.value.option == "novel"
