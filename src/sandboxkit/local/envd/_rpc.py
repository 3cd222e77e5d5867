"""Carries Connect calls out over ASGI: reads requests, enforces deadlines, writes answers and ends of streams.

Three kinds of method, each a coroutine function:

    unary           (message, call) -> answer
    server stream   (message, call, emit) -> last     `emit` returns once the transport has room again
    client stream   (messages, call) -> answer

`last` is a message, or None; it goes out with the end of the stream, which wakes the client once instead of twice.

A method says failure with ConnectError, and may let AgentLost and AgentError out. A client that goes away cancels a
unary call or a server stream at its next await; what must outlive the client is the method's own business.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sandboxkit.local.envd._connect import (
    HTTP_STATUS,
    MAX_MESSAGE,
    STREAM_TYPE,
    UNARY_TYPE,
    Code,
    ConnectError,
    EnvelopeReader,
    basic_user,
    check_headers,
    dump,
    end_of_stream,
    envelope,
    invalid,
    keepalive_of,
    timeout_of,
)
from sandboxkit.local.envd._http import ClientGone, until_gone
from sandboxkit.local.envd._proto_json import Message
from sandboxkit.local.isolation._base import AgentError, AgentLost

Answer = Mapping[str, object] | bytes
"""A message, or its JSON where it is large enough to have been made bit by bit."""

Emit = Callable[[bytes], Awaitable[None]]
"""Sends one message, given as JSON, and waits until the client takes more."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a method may know of its request besides the message. Times are seconds."""

    timeout: float | None
    keepalive: float


Unary = Callable[[Message, Call], Awaitable[Answer]]
ServerStream = Callable[[Message, Call, Emit], Awaitable[bytes | None]]
ClientStream = Callable[[AsyncIterator[Message], Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service. Exactly one of the three is set."""

    unary: Unary | None = None
    server_stream: ServerStream | None = None
    client_stream: ClientStream | None = None
    own_deadline: bool = False
    """The method ends at `call.timeout` by itself."""


DEADLINE: Final = "context deadline exceeded"


def deadline_exceeded() -> ConnectError:
    """The error of a call whose `Connect-Timeout-Ms` has passed, in envd's words."""
    return ConnectError("deadline_exceeded", DEADLINE)


class Dispatcher:
    """Serves the methods of a sandbox's services."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        check_user: Callable[[str | None], None],
        lost: Callable[[], Response],
        lost_message: str,
    ) -> None:
        """Take methods by path (`/process.Process/Start`). `check_user` gets the user of the Basic header, or None,
        and raises ConnectError. `lost` makes the answer when the sandbox is gone before a response began,
        `lost_message` is what a stream says that was under way."""
        self._methods = methods
        self._check_user = check_user
        self._lost = lost
        self._lost_message = lost_message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = self._methods.get(scope["path"])
        if method is None:
            await Response(status_code=404)(scope, receive, send)
            return
        if scope["method"] != "POST":
            await Response(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
            return
        headers = Headers(scope=scope)
        stream = method.unary is None
        expected = STREAM_TYPE if stream else UNARY_TYPE
        if headers.get("content-type", "").split(";", 1)[0].strip().lower() != expected:
            await Response(status_code=415, headers={"Accept-Post": expected})(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, stream=stream)
        try:
            try:
                check_headers(headers, stream=stream)
                self._check_user(basic_user(headers.get("authorization")))
                call = Call(timeout=timeout_of(headers), keepalive=keepalive_of(headers))
                await _carry_out(method, call, exchange)
            except ConnectError as error:
                await exchange.fail(error)
            except AgentError as error:
                await exchange.fail(from_agent(error))
            except AgentLost:
                if not exchange.started:
                    await self._lost()(scope, receive, send)
                else:
                    await exchange.fail(ConnectError("unavailable", self._lost_message))
        except ClientGone:
            return


class _Exchange:
    """One HTTP request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, stream: bool) -> None:
        self.started = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._stream = stream

    async def pieces(self) -> AsyncIterator[bytes]:
        """The request's body as it arrives. ClientGone if it breaks off."""
        more = True
        while more:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise ClientGone
            more = event.get("more_body", False)
            if event.get("body"):
                yield event["body"]

    async def body(self) -> bytes:
        """The whole body. ConnectError when it is longer than a message may be."""
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > MAX_MESSAGE:
                raise ConnectError("resource_exhausted", f"message size is larger than configured max {MAX_MESSAGE}")
        return bytes(whole)

    async def messages(self) -> AsyncIterator[Message]:
        """The request's envelopes, taken apart."""
        reader = EnvelopeReader()
        async for piece in self.pieces():
            for payload in reader.feed(piece):
                yield Message.parse(payload)
        reader.finish()

    async def only_message(self) -> Message:
        """The one message of a server stream's request."""
        found: Message | None = None
        async for message in self.messages():
            if found is not None:
                raise invalid("protocol error: one request message is expected, more came")
            found = message
        if found is None:
            raise invalid("protocol error: one request message is expected, none came")
        return found

    async def while_connected(self, work: Coroutine[object, object, _T], timeout: float | None) -> _T:
        """Do the work, but no longer than the client is there and the deadline allows."""
        task = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(until_gone(self._receive))
        try:
            await asyncio.wait({task, watcher}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if watcher.done():
                raise ClientGone
            raise deadline_exceeded()
        finally:
            task.cancel()
            watcher.cancel()
            await asyncio.gather(task, watcher, return_exceptions=True)

    async def emit(self, payload: bytes) -> None:
        await self._write(envelope(payload), more=True)

    async def answer(self, answer: Answer) -> None:
        payload = answer if isinstance(answer, bytes) else dump(answer)
        if self._stream:
            await self.finish(payload)
        else:
            await _json(payload, 200)(self._scope, self._receive, self._send)

    async def finish(self, last: bytes | None = None) -> None:
        end = end_of_stream()
        await self._write(end if last is None else envelope(last) + end, more=False)

    async def fail(self, error: ConnectError) -> None:
        if self._stream:
            await self._write(end_of_stream(error), more=False)
        else:
            response = _json(dump(error.to_json()), HTTP_STATUS[error.code])
            await response(self._scope, self._receive, self._send)

    async def _write(self, data: bytes, *, more: bool) -> None:
        if not self.started:
            self.started = True
            headers = [(b"content-type", STREAM_TYPE.encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _json(body: bytes, status: int) -> Response:
    return Response(body, status_code=status, media_type=UNARY_TYPE)


async def _carry_out(method: Method, call: Call, exchange: _Exchange) -> None:
    if method.unary is not None:
        message = Message.parse(await exchange.body())
        await exchange.answer(await exchange.while_connected(_awaited(method.unary(message, call)), call.timeout))
    elif method.server_stream is not None:
        message = await exchange.only_message()
        timeout = None if method.own_deadline else call.timeout
        await exchange.while_connected(_streamed(method.server_stream(message, call, exchange.emit), exchange), timeout)
    elif method.client_stream is not None:
        try:
            async with asyncio.timeout(call.timeout) as limit:
                answer = await method.client_stream(exchange.messages(), call)
        except TimeoutError:
            if limit.expired():
                raise deadline_exceeded() from None
            raise
        await exchange.answer(answer)


async def _awaited(work: Awaitable[_T]) -> _T:
    return await work


async def _streamed(work: Awaitable[bytes | None], exchange: _Exchange) -> None:
    await exchange.finish(await work)


# -- errors of the operating system inside ------------------------------------------------------------------------

_CODES: Final[Mapping[int, Code]] = {
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.EXDEV: "permission_denied",
    errno.ENOSPC: "resource_exhausted",
    errno.EDQUOT: "resource_exhausted",
    errno.EAGAIN: "resource_exhausted",
    errno.ENOMEM: "resource_exhausted",
    errno.EMFILE: "resource_exhausted",
    errno.ENFILE: "resource_exhausted",
    errno.E2BIG: "resource_exhausted",
    errno.ENAMETOOLONG: "invalid_argument",
    errno.EINVAL: "invalid_argument",
}


def from_agent(error: AgentError, doing: str = "") -> ConnectError:
    """An error inside the sandbox that the method had no better word for. envd, which acts as root, calls them all
    internal; we act as the user, so a refusal for lack of rights says so."""
    code: Code = _CODES.get(error.errno, "internal")
    return ConnectError(code, f"{doing}: {error}" if doing else str(error))
