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


# As people have them: each with what lies beside it, and what is read from it.
REAL: dict[str, tuple[str, dict[str, str], dict[str, object]]] = {
    "a next app whose start command is a script": (
        'team_id = "t"\nstart_cmd = "/compile_page.sh"\ndockerfile = "e2b.Dockerfile"\ntemplate_name = "nextjs"\n',
        {
            "e2b.Dockerfile": "FROM node:21-slim\n\nRUN apt-get update && apt-get install -y curl && apt-get clean\n"
            "COPY compile_page.sh /compile_page.sh\nRUN chmod +x /compile_page.sh\nWORKDIR /home/user/app\n"
            'RUN npx --yes create-next-app@14.2.20 . --ts --no-eslint --import-alias "@/*" --no-app --no-src-dir\n'
            "RUN npx shadcn@2.1.7 init -d && npx shadcn@2.1.7 add --all\nRUN npm install posthog-js\n"
            "RUN mv /home/user/app/* /home/user/ && rm -rf /home/user/app\n",
            "compile_page.sh": "#!/bin/bash\nfunction ping_server() {\n"
            '  response=$(curl -s -o /dev/null -w "%{http_code}" "http://localhost:3000")\n'
            '  while [[ ${response} -ne 200 ]]; do sleep 0.1; response=$(curl -s "http://localhost:3000"); done\n}\n'
            "ping_server &\ncd /home/user && npx next dev --turbo\n",
        },
        {
            "file": "pages/index.tsx",
            "port": 3000,
            "language": "javascript",
            "install": "npm install",
            "libraries": ("next", "react", "react-dom", "posthog-js"),
        },
    ),
    "the app router, on an image that got node later": (
        'template_name = "n"\nstart_cmd = "cd /home/user && npx next"\nmemory_mb = 4_096',
        {
            "e2b.Dockerfile": "FROM ubuntu:22.04\nRUN curl -fsSL https://deb.example.org/setup_21.x | bash - && \\\n"
            "    apt-get install -y nodejs\nRUN npx create-next-app@latest . --ts --tailwind --app --no-src-dir\n"
        },
        {"file": "app/page.tsx", "port": 3000, "language": "javascript", "memory_mb": 4096},
    ),
    "packages on top of the interpreter": (
        'template_id = "kw1"\nstart_cmd = "/root\x2f.jupyter/start-up.sh"\ncpu_count = 2\nmemory_mb = 1_024\n',
        {
            "e2b.Dockerfile": "FROM e2bdev/code-interpreter:latest\nCOPY requirements.txt /tmp/\n"
            "RUN pip install --no-cache-dir -r /tmp/requirements.txt\nRUN npm install -g typescript\n",
            "requirements.txt": "# what we use\nifcopenshell==0.8.0\npandas>=2 ; python_version > '3.8'\n\n"
            "-r more.txt\nhttps://example.org/x.whl\n./local\nscikit-learn[extra]~=1.5\n",
        },
        {
            "file": "script.py",
            "port": None,
            "start": None,
            "ready": None,
            "language": "python",
            "install": "pip install",
            "libraries": ("ifcopenshell", "pandas", "scikit-learn"),
        },
    ),
    "an api with uvicorn and a ready command": (
        'template_name = "api"\nstart_cmd = "cd /home/user && uvicorn app.main:app --host 0.0.0.0 --port 8080"\n'
        'ready_cmd = "curl -sf http://localhost:8080/healthz"\n',
        {"e2b.Dockerfile": 'FROM python:3.11\nRUN ["pip", "install", "fastapi", "uvicorn[standard]"]\n'},
        {"file": "app/main.py", "port": 8080, "ready": "/healthz", "libraries": ("fastapi", "uvicorn")},
    ),
    "a vite app that package.json starts": (
        'template_name = "vite"\nstart_cmd = "npm run dev"\ndockerfile = "Dockerfile"\n',
        {
            "Dockerfile": "FROM node:20 AS build\nRUN npm ci\nFROM node:20-slim\nCOPY package*.json ./\n"
            "RUN --mount=type=cache,target=/cache npm install\n",
            "package.json": '{"scripts": {"dev": "vite --host --port 4321"}, "dependencies": {"react": "18"}, '
            '"devDependencies": {"vite": "5", "@vitejs/plugin-react": "4"}}',
        },
        {"port": 4321, "libraries": ("react", "vite", "@vitejs/plugin-react"), "language": "javascript"},
    ),
    "nuxt": (
        'team_id = "t"\nstart_cmd = "cd /home/user && npx nuxi dev"\ntemplate_name = "vue-developer"\n',
        {"e2b.Dockerfile": "FROM node:21-slim\nRUN npx nuxi@latest init . --packageManager=npm --gitInit=no -f\n"},
        {"file": "app.vue", "port": 3000, "libraries": ("nuxt", "vue")},
    ),
    "flask by gunicorn, with lines of windows": (
        'template_name = "flask"\r\nstart_cmd = "gunicorn -w 4 -b 0.0.0.0:9000 wsgi:app"\r\n',
        {"e2b.Dockerfile": "FROM python:3.12-slim\r\nRUN pip install \\\r\n  flask \\\r\n  gunicorn\r\n"},
        {"file": "wsgi.py", "port": 9000, "libraries": ("flask", "gunicorn")},
    ),
}


@pytest.mark.parametrize(
    ("start", "file", "port"),
    [
        ("flask --app server run --host 0.0.0.0", "server.py", 5000),
        ("cd /home/user && gradio app.py", "app.py", 7860),
        ("gunicorn -b localhost:8001 pkg.web:create_app", "pkg/web.py", 8001),
        ("PORT=4000 python main.py", "main.py", 4000),
        ("sudo uvicorn main:app --reload", "main.py", 8000),
    ],
)
def test_what_a_start_command_says(tmp_path: Path, start: str, file: str, port: int) -> None:
    """The file and the port of the usual servers."""
    found = Template.from_e2b_toml(write(tmp_path, f'template_name = "x"\nstart_cmd = "{start}"\n', PYTHON))
    assert (found.file, found.port) == (file, port)


@pytest.mark.parametrize("kind", REAL)
def test_templates_as_people_have_them(tmp_path: Path, kind: str) -> None:
    """What the two files say, and what lies beside them, is read; nothing has to be said again."""
    toml, beside, expected = REAL[kind]
    (tmp_path / "e2b.toml").write_bytes(toml.encode())
    for name, text in beside.items():
        (tmp_path / name).write_bytes(text.encode())
    file = None if "file" in expected else "src/App.jsx"
    found = Template.from_e2b_toml(tmp_path / "e2b.toml", file=file)
    assert {name: getattr(found, name) for name in expected} == expected


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
