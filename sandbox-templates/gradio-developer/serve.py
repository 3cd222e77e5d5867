"""Serves the app of a Gradio file, and loads the file again whenever it is not the one that was loaded.

`python3 serve.py app.py`. Gradio's own `gradio app.py` compares with what it finds when its watcher first looks. That
is seconds after it has read the file, and a file that was written in between stays unseen: it would show the page that
was there before. Here each load is remembered with the files as they were before it began.

READY answers once what is there has been loaded: 200, or 500 with the traceback where that failed.
"""

import os
import sys
import threading
import time
import traceback
import types
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from gradio.cli.commands.reload import reload_thread
from gradio.utils import SourceFileReloader
from starlette.responses import PlainTextResponse
from starlette.routing import Route

MAIN = Path(sys.argv[1]).resolve()
PLACE = MAIN.parent
READY = "/_loaded"
PACE = 0.03
KEPT = ("footer_links", "run_history", "show_error")
"""What launch() was told, and Gradio's reloading loses."""
NOT_OURS = {"node_modules", "__pycache__", "site-packages"}


def look():
    """Every file that may be part of the app, by what changes when it is written."""
    found = {}
    for folder, folders, files in os.walk(PLACE):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NOT_OURS]
        for name in files:
            if name.endswith((".py", ".css")):
                try:
                    facts = os.stat(os.path.join(folder, name))
                except FileNotFoundError:
                    continue
                found[folder, name] = facts.st_mtime_ns, facts.st_size, facts.st_ino
    return found


@dataclass
class Loaded:
    """What the server shows: the files as they were before they were loaded, and how that failed."""

    files: dict
    error: str = ""

    def answer(self, request):
        """Wait until what is there has been loaded; in a thread of the server's."""
        while look() != self.files:
            time.sleep(PACE)
        return PlainTextResponse(self.error or "loaded", 500 if self.error else 200)


def load(module):
    """Run the file; the modules beside it are imported anew."""
    for name, one in list(sys.modules.items()):
        file = getattr(one, "__file__", None)
        if file and one is not module and (PLACE in (path := Path(file)).parents) and not NOT_OURS & {*path.parts}:
            del sys.modules[name]
    exec(compile(MAIN.read_bytes(), str(MAIN), "exec"), module.__dict__)


def app_of(module):
    """The file's Blocks: the one that was launched, else the one called demo."""
    found = [one for one in list(vars(module).values()) if isinstance(one, gr.Blocks)]
    return next((one for one in found if one.is_running), None) or vars(module).get("demo")


def watch(module, loaded):
    """Load again for as long as the server runs."""
    reload_thread.running_reload = True  # launch() does nothing in this thread
    while (demo := app_of(module)) is None or not demo.is_running:
        time.sleep(PACE)
    name = next(name for name, one in list(vars(module).items()) if one is demo)
    reloader = SourceFileReloader(demo.app, [str(PLACE)], "__main__", str(MAIN), module, threading.Event(), name)
    demo.app.router.routes.insert(0, Route(READY, loaded.answer))
    while True:
        found = look()
        if found != loaded.files:
            error = ""
            try:
                load(module)
                new = getattr(module, name)
                for kept in KEPT:
                    setattr(new, kept, getattr(reloader.running_app.blocks, kept))
                reloader.swap_blocks(new)
            except SystemExit as end:
                print(f"{MAIN.name} ended the app: {end!r}", flush=True)
                os._exit(end.code if isinstance(end.code, int) else 1)
            except Exception:
                error = reloader.app.reload_error_message = traceback.format_exc()
                print(error, flush=True)
                reloader.alert_change("error")
            loaded.files, loaded.error = found, error
        time.sleep(PACE)


def main():
    """Serve."""
    # After Gradio's import, which would start its own watcher by it; its pages follow reloads where it is set.
    os.environ["GRADIO_WATCH_DIRS"] = str(PLACE)
    module = types.ModuleType("__main__")
    module.__file__ = str(MAIN)
    sys.modules["__main__"] = module
    sys.path.insert(0, str(PLACE))
    sys.argv = sys.argv[1:]
    loaded = Loaded(look())
    threading.Thread(target=watch, args=(module, loaded), daemon=True).start()
    load(module)
    demo = app_of(module)
    if demo is None:
        sys.exit(f"{MAIN.name} has no Blocks or Interface called demo")
    if not demo.is_running:
        demo.launch()
    demo.block_thread()


if __name__ == "__main__":
    main()
