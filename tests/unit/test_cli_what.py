"""What `sandboxkit run` makes of a path: a program, an app, or a fragment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkit.cli._run_app import printable
from sandboxkit.cli._what import Given, recognise
from sandboxkit.errors import ConfigurationError, UnsupportedOption
from sandboxkit.template import Template, _registered


@pytest.fixture(autouse=True)
def templates() -> Iterator[None]:
    """Templates of the names that are looked for, whether or not the library has them here."""
    known = dict(_registered())
    _registered().clear()
    for name in ("streamlit-developer", "gradio-developer"):
        Template(name, file="app.py", port=8501, start="serve app.py", install="pip install").register()
    for name in ("nextjs-developer", "vue-developer"):
        libraries = ("next", "nuxt", "react", "vue")
        Template(name, file="pages/index.tsx", port=3000, start="npx serve", libraries=libraries).register()
    Template("code-interpreter-v1", file="script.py").register()
    yield
    _registered().clear()
    _registered().update(known)


def put(folder: Path, **files: str) -> Path:
    """Write files; `__` stands for a slash, `_dot_` for a dot."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def given(path: Path, template: str | None = None) -> Given:
    found = recognise(str(path), template)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("import streamlit as st\nst.title('x')", "streamlit-developer"),
        ("import os\nfrom gradio import Blocks", "gradio-developer"),
        ("import gradio.themes", "gradio-developer"),
    ],
)
def test_a_file_is_known_by_what_it_imports(tmp_path: Path, text: str, template: str) -> None:
    """It becomes the template's own file, whatever it is called."""
    put(tmp_path, mine_dot_py=text)
    fragment = given(tmp_path / "mine.py").fragment
    assert (fragment.template, fragment.code, fragment.file) == (template, text, None)


@pytest.mark.parametrize(
    "text", ["print(1)", "def f():\n    import streamlit", "import streamlit.", "", "\0", "from . import gradio"]
)
def test_another_file_is_a_program(tmp_path: Path, text: str) -> None:
    """Also one that is no Python: the interpreter says that better."""
    put(tmp_path, program_dot_py=text)
    assert recognise(str(tmp_path / "program.py"), None) is None


def test_the_users_word_counts_more(tmp_path: Path) -> None:
    """--template makes a program of an app, and an app of a file that imports nothing."""
    put(tmp_path, app_dot_py="import streamlit", plain_dot_py="import helper")
    assert recognise(str(tmp_path / "app.py"), "code-interpreter-v1") is None
    assert given(tmp_path / "plain.py", "gradio-developer").fragment.template == "gradio-developer"
    assert recognise("-", None) is None
    assert recognise(str(tmp_path / "none.py"), None) is None


def test_a_project_of_node_is_taken_along(tmp_path: Path) -> None:
    """Its files as they are, without what is installed, built, hidden or a link; packages that the template lacks are
    dependencies."""
    package = {"dependencies": {"next": "16", "react": "^19", "zod": "^4.1.0"}, "devDependencies": {"x": "file:../x"}}
    put(
        tmp_path,
        package_dot_json=json.dumps(package),
        pages__index_dot_tsx="export default 1",
        node_modules__a_dot_js="no",
        _dot_next__b_dot_js="no",
        _dot_env="SECRET=1",
    )
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "logo.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "link").symlink_to("/etc/passwd")
    found = given(tmp_path)
    assert found.fragment.template == "nextjs-developer"
    assert set(found.fragment.files or {}) == {"package.json"}
    assert found.fragment.dependencies == ("zod@^4.1.0", "x@latest")
    assert found.files == {"pages/index.tsx": b"export default 1", "public/logo.png": b"\x89PNG\xff"}
    put(tmp_path, package_dot_json=json.dumps({"dependencies": {"nuxt": "4", "next": "1"}}))
    assert given(tmp_path).fragment.template == "vue-developer"


def test_a_folder_with_an_app_of_python(tmp_path: Path) -> None:
    """Its app.py says which; the rest comes along."""
    put(tmp_path, app_dot_py="import streamlit", helper_dot_py="x = 1", data__a_dot_csv="1")
    found = given(tmp_path)
    assert found.fragment.template == "streamlit-developer"
    assert found.fragment.files == {"app.py": "import streamlit"}
    assert set(found.files) == {"helper.py", "data/a.csv"}


@pytest.mark.parametrize("name", ["streamlit_app.py", "main.py"])
def test_an_app_of_python_may_have_another_name(tmp_path: Path, name: str) -> None:
    """It becomes the template's own file; what it imports from beside it comes along under its own name."""
    put(tmp_path, **{name.replace(".", "_dot_"): "import helper\nimport streamlit", "helper_dot_py": "x = 1"})
    found = given(tmp_path)
    assert found.fragment.template == "streamlit-developer"
    assert found.fragment.files == {"app.py": "import helper\nimport streamlit"}
    assert set(found.files) == {"helper.py"}
    put(tmp_path, app_dot_py="import flask")
    with pytest.raises(UnsupportedOption):
        recognise(str(tmp_path), None)


def test_a_project_takes_the_place_of_the_templates_app(tmp_path: Path) -> None:
    """What Next and Nuxt would take for a part of it is removed first; a file, and an app of Python's, replace one file
    anyway. Nuxt's configuration stays where a project has none and lays its files out as the template does."""
    package = {
        "next": json.dumps({"dependencies": {"next": "16"}}),
        "nuxt": json.dumps({"dependencies": {"nuxt": "4"}}),
    }
    assert given(put(tmp_path / "a", package_dot_json=package["next"], app__page_dot_jsx="1")).replaces == ("pages",)
    for number, (files, replaced) in enumerate(
        [
            ({"app_dot_vue": "1"}, ("app", "nuxt.config.ts")),
            ({"app_dot_vue": "1", "nuxt_dot_config_dot_ts": "1"}, ("app",)),
            ({"app__app_dot_vue": "1", "nuxt_dot_config_dot_js": "1"}, ("app",)),
            ({"app__app_dot_vue": "1"}, ()),
        ]
    ):
        assert given(put(tmp_path / f"n{number}", package_dot_json=package["nuxt"], **files)).replaces == replaced
    assert given(put(tmp_path / "p", app_dot_py="import gradio")).replaces == ()


def test_what_lies_beside_a_file_is_known(tmp_path: Path) -> None:
    """So that a module that is missing can be found there."""
    put(tmp_path, app_dot_py="import gradio", helper_dot_py="", pkg____init___dot_py="")
    assert {"helper", "app"} < given(tmp_path / "app.py").beside


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ({}, UnsupportedOption, "directory"),
        ({"main_dot_py": "import flask"}, UnsupportedOption, "directory"),
        ({"package_dot_json": "{"}, ConfigurationError, "package.json"),
        ({"package_dot_json": "[]"}, ConfigurationError, "package.json"),
        ({"package_dot_json": '{"dependencies": []}'}, UnsupportedOption, "directory"),
    ],
)
def test_a_folder_that_is_none_of_these(
    tmp_path: Path, files: dict[str, str], error: type[Exception], says: str
) -> None:
    """It is refused, and says what is looked for."""
    with pytest.raises(error, match=says):
        recognise(str(put(tmp_path, **files)), None)


def test_a_fragment_is_read_from_its_file(tmp_path: Path) -> None:
    """As JSON, in the names of today or of older apps; what is wrong with it is said in one line."""
    put(tmp_path, f_dot_json='{"template": "gradio-developer", "code": "x", "file_path": "app.py"}')
    assert given(tmp_path / "f.json").fragment.file == "app.py"
    for text, says in (
        ("{", "the whole"),
        ('{"template": "t", "code": 1}', "code"),
        ("[]", "the whole"),
        ('{"template": "t", "code": 1, "port": "x"}', r"\(and 1 more\)"),
    ):
        put(tmp_path, f_dot_json=text)
        with pytest.raises(ConfigurationError, match=says) as caught:
            recognise(str(tmp_path / "f.json"), None)
        assert "\n" not in str(caught.value)
        assert "0 more" not in str(caught.value)
    put(tmp_path, package_dot_json='{"dependencies": {"next": "16"}}')
    with pytest.raises(ConfigurationError, match="name its folder"):
        recognise(str(tmp_path / "package.json"), None)
    put(tmp_path, f_dot_json='{"template": "t", "code": "x"}')
    with pytest.raises(ConfigurationError, match="--template"):
        recognise(str(tmp_path / "f.json"), "other")


def test_what_comes_from_inside_is_text_for_a_terminal() -> None:
    """Nothing that a log holds moves the cursor, sets a title, or turns text around."""
    assert printable("a\x1b[2Jb\x1b]0;t\x07c\rd\te\n\u202ef\u00e9\x9b1m") == "a[2Jb]0;tcd\te\nf\u00e91m"
