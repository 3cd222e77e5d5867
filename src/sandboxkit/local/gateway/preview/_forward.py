"""One request to a server in a sandbox, and its answer, both streamed; or a connection handed over whole.

The server is hostile: its answer is taken apart and put together again (h11), so that what the client gets is framed as
we understood it; heads are bounded; no piece is read before the one before it has been taken. There is no time limit:
a server may think for long, and a stream may be silent. A request ends when either side goes, or when its sandbox does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, MutableMapping
from typing import Any

import h11

from sandboxkit.local.gateway._tunnel import TAKE_OVER, Tunnel
from sandboxkit.local.gateway.egress._stream import Stream
from sandboxkit.local.gateway.preview import _headers
from sandboxkit.local.gateway.preview._headers import View

LARGEST_HEAD = 64 * 1024
PIECE = 64 * 1024
INFORMATIONAL = 16
"""Answers of the kind 1xx that a server may send before the one that counts."""
CONTINUE_WITHIN = 1.0
"""Seconds that a server gets to say that it wants a body, where the client asked; it is sent then in any case."""
LINGER = 10.0
"""Seconds that a server gets to end a switched connection once its client has said all."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]


class Unanswered(Exception):
    """The server gave no answer that can be passed on; nothing has been sent to the client."""


class CutOff(Exception):
    """The answer broke off after it had begun."""


class BadRequest(Exception):
    """The request cannot be passed on."""


class Forward:
    """Passes one request on.

    Args:
        scope, receive, send: of the request, by ASGI.
        stream: a connection to the server; closed by the caller.
        seen: how headers are changed.
        is_alive: whether the sandbox still lives: the end of an answer without a length is no end otherwise.
    """

    def __init__(
        self, scope: Scope, receive: Any, send: Any, *, stream: Stream, seen: View, is_alive: Callable[[], bool]
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stream = stream
        self._seen = seen
        self._is_alive = is_alive
        self._server = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
        self._wants_body = asyncio.Event()
        self._has_begun = False
        self._has_switched = False

    async def run(self) -> None:
        """Pass it on, and return when it is answered, or its client is gone.

        Raises:
            BadRequest, Unanswered, CutOff: it failed.
        """
        await self._begin()
        upload = asyncio.create_task(self._upload(), name="preview upload")
        answer = asyncio.create_task(self._answer(), name="preview answer")
        try:
            await asyncio.wait([upload, answer], return_when=asyncio.FIRST_COMPLETED)
            if self._has_switched:  # the request as such is over then
                await asyncio.wait([answer])
        finally:
            # The answer counts where there is one, also to a request that was not wanted in full.
            for task in (upload, answer):
                task.cancel()
            await asyncio.wait([upload, answer])
            if not upload.cancelled():
                upload.exception()
        if not answer.cancelled():
            answer.result()

    async def _begin(self) -> None:
        scope, given = self._scope, self._scope["headers"]
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        try:
            headers = _headers.to_server(given, self._seen)
            head = self._server.send(h11.Request(method=scope["method"], target=target, headers=headers))
            if not _headers.has_body(given):
                self._server.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise BadRequest(str(error)) from error
        if not any(name == b"expect" and value.lower() == b"100-continue" for name, value in given):
            self._wants_body.set()
        try:
            await self._stream.send(head or b"")
        except OSError as error:
            raise Unanswered("it closed the connection") from error

    # -- to the server --------------------------------------------------------------------------------------------

    async def _upload(self) -> None:
        """Send the body as it comes; then wait for the client to go."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONTINUE_WITHIN):
                await self._wants_body.wait()
        more = _headers.has_body(self._scope["headers"])
        while (message := await self._receive())["type"] != "http.disconnect":
            if more:
                more = await self._pass_on(message)

    async def _pass_on(self, message: Message) -> bool:
        """Whether more of the body is wanted."""
        try:
            if message.get("body"):
                await self._stream.send(self._server.send(h11.Data(data=message["body"])) or b"")
            if not message.get("more_body", False):
                await self._stream.send(self._server.send(h11.EndOfMessage()) or b"")
                return False
        except OSError:
            return False  # it reads no more; what it has to say may be on its way
        except h11.LocalProtocolError:
            return False  # the server has ended, or broken, the exchange
        return True

    # -- to the client --------------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        try:
            await self._pass_back()
        except (h11.RemoteProtocolError, OSError) as error:
            if self._has_begun:
                raise CutOff from error
            raise Unanswered(_reason(error)) from error

    async def _pass_back(self) -> None:
        ends_by_closing = False
        informational = 0
        while True:
            event = await self._event()
            match event:
                case h11.InformationalResponse(status_code=101):
                    await self._switch(event)
                    return
                case h11.InformationalResponse():
                    informational += 1
                    if informational > INFORMATIONAL:
                        raise h11.RemoteProtocolError("it sends provisional answers without end")
                    if event.status_code == 100:
                        self._wants_body.set()
                case h11.Response():
                    ends_by_closing = self._ends_by_closing(event)
                    await self._start(event)
                case h11.Data():
                    await self._send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                case h11.EndOfMessage():
                    if ends_by_closing and not self._is_alive():
                        raise CutOff
                    await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                case _:
                    raise h11.RemoteProtocolError("it closed the connection")

    async def _start(self, response: h11.Response) -> None:
        if response.status_code > 599:
            raise h11.RemoteProtocolError(f"{response.status_code} is no status")
        headers = _headers.to_client(response.status_code, response.headers, self._seen)
        if not self._wants_body.is_set():
            headers.append((b"connection", b"close"))  # whether the client sends its body now is anybody's guess
        self._has_begun = True
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})

    def _ends_by_closing(self, response: h11.Response) -> bool:
        names = {bytes(name) for name, _value in response.headers}
        return not names & {b"content-length", b"transfer-encoding"}

    async def _event(self) -> object:
        while (event := self._server.next_event()) is h11.NEED_DATA:
            # In small pieces, until the head is whole: h11 looks at its size between them.
            self._server.receive_data(await self._stream.receive(PIECE if self._has_begun else PIECE // 4))
        return event

    # -- another protocol -----------------------------------------------------------------------------------------

    async def _switch(self, response: h11.InformationalResponse) -> None:
        extension = self._scope.get("extensions", {}).get(TAKE_OVER)
        if extension is None:
            raise h11.RemoteProtocolError("it switches to a protocol that nobody asked for")
        self._has_begun = self._has_switched = True
        early, _closed = self._server.trailing_data
        tunnel: Tunnel = extension["call"](_headers.switching(response.headers, self._seen) + early)
        try:
            await _both_ways(tunnel, self._stream)
        except BaseException:
            tunnel.abort()
            raise
        tunnel.close()


async def _both_ways(client: Tunnel, server: Stream) -> None:
    """Carry bytes until the server has ended, either side broke, or the client ended and the server does not."""

    async def up() -> None:
        while data := await client.receive():
            await server.send(data)
        server.finish()
        await asyncio.sleep(LINGER)

    async def down() -> None:
        while data := await server.receive(PIECE):
            await client.send(data)

    tasks = [asyncio.create_task(up(), name="preview up"), asyncio.create_task(down(), name="preview down")]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # a side that broke is an end like any other


def _reason(error: Exception) -> str:
    if isinstance(error, h11.RemoteProtocolError):
        text = str(error)
        # What h11 says of an end before the answer is about its own states.
        return "it closed the connection" if "ConnectionClosed" in text else text[:200]
    return "it closed the connection"
