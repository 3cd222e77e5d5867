"""The four web templates in a browser: a page is seen, answers to a click or an input, and shows an edit while the
same server runs on and the same page stays open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandboxkit import AsyncSandboxPool, AsyncSession, Edit, Endpoint, Fragment, Template, TimeoutPolicy

pytestmark = pytest.mark.anyio

SECONDS = 60.0
"""How long something may take to be seen, on a busy machine."""


@dataclass(frozen=True)
class Trial:
    """A template's fragment, how to press its button, and what is seen then."""

    template: str
    code: str
    answer: str
    """What is seen after "Ada" was typed, where there is something to type in, and the button was pressed."""
    channel: str
    """Part of the address of what tells the page of news: its WebSocket, or its stream of events."""
    typed: str | None = None
    """The label of the input."""


TRIALS = [
    Trial(
        "nextjs-developer",
        """\
import { useEffect, useState } from "react";

export default function Page() {
  const [count, setCount] = useState(0);
  const [isAlive, setAlive] = useState(false);
  useEffect(() => setAlive(true), []);
  return (
    <main className="p-8">
      <h1 className="text-4xl text-sky-600">The first edition</h1>
      <button className="border p-2" disabled={!isAlive} onClick={() => setCount(count + 1)}>Press</button>
      <p>Pressed {count} times</p>
    </main>
  );
}
""",
        "Pressed 1 times",
        "/_next/",
    ),
    Trial(
        "vue-developer",
        """\
<script setup>
const name = ref("");
const greeted = ref("");
const isAlive = ref(false);
onMounted(() => { isAlive.value = true; });
</script>
<template>
  <main class="p-8">
    <h1 class="text-4xl text-sky-600">The first edition</h1>
    <label>Name <input v-model="name" class="border" /></label>
    <button class="border p-2" :disabled="!isAlive" @click="greeted = name">Press</button>
    <p>Hello {{ greeted }}!</p>
  </main>
</template>
""",
        "Hello Ada!",
        "/_nuxt/",
        "Name",
    ),
    Trial(
        "streamlit-developer",
        """\
import streamlit as st

st.title("The first edition")
name = st.text_input("Name")
if st.button("Press"):
    st.session_state.greeted = name
st.write(f"Hello {st.session_state.get('greeted', '')}!")
""",
        "Hello Ada!",
        "/_stcore/stream",
        "Name",
    ),
    Trial(
        "gradio-developer",
        """\
import gradio as gr

with gr.Blocks() as demo:
    gr.Markdown("# The first edition")
    name = gr.Textbox(label="Name")
    greeted = gr.Textbox(label="Greeting")
    gr.Button("Press").click(lambda name: f"Hello {name}!", name, greeted)

if __name__ == "__main__":
    demo.launch()
""",
        "Hello Ada!",
        "/gradio_api/",
        "Name",
    ),
]


class Watched:
    """A page, and what came over its lasting connections."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.opened: list[str] = []
        self.received = 0
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._websocket)
        page.on("response", self._response)

    def _websocket(self, socket: Any) -> None:
        self.opened.append(socket.url)
        socket.on("framereceived", lambda _: setattr(self, "received", self.received + 1))

    def _response(self, response: Any) -> None:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            self.opened.append(response.url)
            self.received += 1

    async def see(self, text: str) -> None:
        """Wait until a text is to be seen, in the page or in one of its inputs."""
        shown = """text => document.body.innerText.includes(text)
            || [...document.querySelectorAll("input, textarea")].some(one => one.value.includes(text))"""
        await self.page.wait_for_function(shown, arg=text, timeout=SECONDS * 1000)


async def servers(session: AsyncSession, port: int) -> set[tuple[str, ...]]:
    """Who listens on the port inside: number and start of each process."""
    script = (
        f"ss -Hltnp 'sport = :{port}' | grep -o 'pid=[0-9]*' | sort -u | cut -d= -f2 | "
        "while read pid; do echo $pid $(cut -d' ' -f22 /proc/$pid/stat); done"
    )
    done = await session.run_command(script)
    return {tuple(line.split()) for line in done.stdout.splitlines()}


@pytest.mark.parametrize("trial", TRIALS, ids=[trial.template for trial in TRIALS])
async def test_an_app_in_the_browser(trial: Trial, browser: Any, web_engine: Endpoint, tmp_path: Path) -> None:
    """It renders with its styles, reacts over its own connection, and shows what a second run has changed, in the page
    that is open and without a restart of its server."""
    port = Template.get(trial.template).port
    assert port is not None
    pool = AsyncSandboxPool(endpoint=web_engine, template=trial.template, timeouts=TimeoutPolicy(ready=SECONDS * 2))
    async with pool, pool.session(None) as session:
        first = await session.run(Fragment(template=trial.template, code=trial.code))
        assert first.app is not None
        before = await servers(session, port)
        assert before
        page = await browser.new_page()
        watched = Watched(page)
        await page.goto(first.app.browser_url)
        await watched.see("The first edition")
        heading = page.get_by_role("heading", name="The first edition")
        size = await heading.evaluate("one => parseFloat(getComputedStyle(one).fontSize)")
        assert size > 24, "its styles are there"
        await page.screenshot(path=tmp_path / "rendered.png")

        button = page.get_by_role("button", name="Press")
        await button.click(trial=True, timeout=SECONDS * 1000)  # once its scripts are there, and have made it alive
        if trial.typed is not None:
            await page.get_by_label(trial.typed).fill("Ada")
            await page.keyboard.press("Tab")
        await button.click()
        await watched.see(trial.answer)
        assert any(trial.channel in address for address in watched.opened), watched.opened
        assert watched.received
        await page.screenshot(path=tmp_path / "answered.png")

        await page.evaluate("window.sameDocument = true")
        edit = Edit(path=Template.get(trial.template).file, search="The first edition", replace="The second edition")
        second = await session.run(Fragment(template=trial.template, edits=(edit,)))
        assert second.app is not None
        assert second.app.browser_url == first.app.browser_url
        await watched.see("The second edition")
        assert "The first edition" not in await page.inner_text("body")
        assert await page.evaluate("window.sameDocument === true"), "the page was not loaded again"
        await watched.see(trial.answer)
        await page.screenshot(path=tmp_path / "edited.png")
        assert await servers(session, port) == before
        assert watched.errors == []
        await page.close()
