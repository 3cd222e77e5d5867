"""One connection of a program inside: what it asks for, the call, and the bytes to and fro.

It speaks SOCKS 5, HTTP's CONNECT, or one plain HTTP request for a whole address; the first byte says which. A plain
request is taken apart and put together again (h11), so that what goes out is framed as we understood it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import h11

from sandboxkit.local.gateway.egress import _http, _socks
from sandboxkit.local.gateway.egress._addresses import Address
from sandboxkit.local.gateway.egress._dialler import Unreachable
from sandboxkit.local.gateway.egress._rules import Refusal
from sandboxkit.local.gateway.egress._stream import Stream

ASK_WITHIN = 15.0
"""Seconds that a program has to say whom it wants to call."""
IDLE_FOR = 600.0
"""Seconds after which a connection over which nothing went in either direction is closed."""
LARGEST_HEAD = 64 * 1024
PIECE = 64 * 1024
LINGER = 1.0
MOST_UNREAD = 1024 * 1024

Call = Callable[[Address | str, int], Awaitable["Stream | Refusal"]]


class Connection:
    """Serves one connection to its end.

    Args:
        inside: the connection; closed by the caller.
        call: connects to a host, or says why not; Unreachable is passed through. The caller closes what it gave.
    """

    def __init__(self, inside: Stream, call: Call) -> None:
        self._inside = inside
        self._call = call

    async def serve(self) -> None:
        """Serve it. Raises nothing but what cancels it."""
        with contextlib.suppress(OSError, TimeoutError, h11.ProtocolError):
            async with asyncio.timeout(ASK_WITHIN):
                first = await self._inside.receive(PIECE)
            if first[:1] == bytes([_socks.VERSION]):
                await self._serve_socks(first)
            elif first[:8] == b"CONNECT ":
                await self._serve_connect(first)
            elif first:
                await self._serve_http(first)

    # -- SOCKS ----------------------------------------------------------------------------------------------------

    async def _serve_socks(self, data: bytes) -> None:
        inside = self._inside
        try:
            async with asyncio.timeout(ASK_WITHIN):
                while (length := _socks.read_greeting(data)) is None:
                    data += await self._more()
                data = data[length:]
                await inside.send(_socks.WELCOME)
                while (found := _socks.read_request(data)) is None:
                    data += await self._more()
        except _socks.Malformed as error:
            await inside.send(error.reply)
            return
        except ValueError:
            await inside.send(_socks.reply(_socks.NOT_ALLOWED))
            return
        try:
            outside = await self._call(found[1].host, found[1].port)
        except Unreachable:
            await inside.send(_socks.reply(_socks.UNREACHABLE))
            return
        if isinstance(outside, Refusal):
            await inside.send(_socks.reply(_socks.NOT_ALLOWED))
            return
        await inside.send(_socks.reply(_socks.OK))
        await outside.send(data[found[0] :])
        await both_ways(inside, outside)

    async def _more(self) -> bytes:
        data = await self._inside.receive(_socks.LARGEST)
        if not data:
            raise ConnectionError("it hung up")
        return data

    # -- HTTP -----------------------------------------------------------------------------------------------------

    async def _serve_connect(self, data: bytes) -> None:
        """A tunnel. Of the request its first line counts, and where it ends: nothing of it is passed on."""
        idle = h11.Connection(h11.SERVER)
        async with asyncio.timeout(ASK_WITHIN):
            while (end := data.find(b"\r\n\r\n")) < 0 and len(data) < LARGEST_HEAD:
                data += await self._more()
        words = data[: max(end, 0)].split(b"\r\n")[0].split(b" ")
        try:
            if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
                raise _http.BadTarget("this is no request")
            target = _http.read_target(words[0], words[1])
            outside = await self._call(target.host, target.port)
        except ValueError as error:
            await self._refuse(idle, 400, str(error))
        except Unreachable as error:
            await self._refuse(idle, error.status, str(error))
        else:
            if isinstance(outside, Refusal):
                await self._refuse(idle, outside.status, outside.told)
                return
            await self._inside.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await outside.send(data[end + 4 :])
            await both_ways(self._inside, outside)

    async def _serve_http(self, data: bytes) -> None:
        inside = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
        inside.receive_data(data)
        try:
            async with asyncio.timeout(ASK_WITHIN):
                request = await self._event(inside, self._inside)
            if not isinstance(request, h11.Request):
                return
            target = _http.read_target(request.method, request.target)
        except (ValueError, h11.RemoteProtocolError) as error:
            await self._refuse(inside, 400, str(error))
            return
        try:
            outside = await self._call(target.host, target.port)
        except Unreachable as error:
            await self._refuse(inside, error.status, str(error))
            return
        if isinstance(outside, Refusal):
            await self._refuse(inside, outside.status, outside.told)
        else:
            await self._forward(inside, request, target, outside)

    async def _forward(
        self, inside: h11.Connection, request: h11.Request, target: _http.Target, outside: Stream
    ) -> None:
        """Pass one request on, and its answer back, at the same time: a server may answer before it has read all."""
        server = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGEST_HEAD)
        headers = [(b"host", target.shown.encode("ascii", "replace")), *_http.passed_on(request.headers, without=_HOST)]
        if inside.they_are_waiting_for_100_continue:
            await self._inside.send(inside.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        started = h11.Request(method=request.method, target=target.path, headers=_without_expect(headers))
        await outside.send(server.send(started) or b"")
        async with asyncio.timeout(IDLE_FOR) as limit:
            sending = asyncio.create_task(self._pass_body(inside, self._inside, server, outside, limit))
            try:
                while True:
                    event = await self._event(server, outside)
                    limit.reschedule(asyncio.get_running_loop().time() + IDLE_FOR)
                    if isinstance(event, h11.InformationalResponse):
                        continue
                    if isinstance(event, h11.Response):
                        event = h11.Response(
                            status_code=event.status_code, reason=event.reason, headers=_http.passed_on(event.headers)
                        )
                    if isinstance(event, h11.Response | h11.Data | h11.EndOfMessage):
                        await self._inside.send(inside.send(event) or b"")
                    if event is None or isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                        return
            finally:
                sending.cancel()
                await asyncio.wait([sending])
                if not sending.cancelled():
                    sending.exception()  # the answer, or its lack, says it all

    async def _pass_body(
        self, source: h11.Connection, inside: Stream, target: h11.Connection, outside: Stream, limit: asyncio.Timeout
    ) -> None:
        while True:
            event = await self._event(source, inside)
            limit.reschedule(asyncio.get_running_loop().time() + IDLE_FOR)
            if isinstance(event, h11.Data | h11.EndOfMessage):
                await outside.send(target.send(event) or b"")
            if not isinstance(event, h11.Data):
                return

    async def _event(self, connection: h11.Connection, stream: Stream) -> h11.Event | None:
        """The next event; None where the other side may send nothing more."""
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive(PIECE))
        return event if isinstance(event, h11.Event) else None

    async def _refuse(self, inside: h11.Connection, status: int, why: str) -> None:
        """Answer in the engine's own words, so that whoever reads it knows what to change. What was sent and not read
        is read first: closing over it would take the answer away again."""
        body = f"sandboxkit: {why}\n".encode("utf-8", "replace")
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-sandboxkit-egress", b"refused"),
        ]
        reason = {400: b"Bad Request", 403: b"Forbidden", 502: b"Bad Gateway", 504: b"Gateway Timeout"}.get(status, b"")
        with contextlib.suppress(h11.LocalProtocolError):
            response = inside.send(h11.Response(status_code=status, reason=reason, headers=headers)) or b""
            await self._inside.send(response + (inside.send(h11.Data(data=body)) or b""))
        self._inside.finish()
        left = MOST_UNREAD
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while left > 0 and (data := await self._inside.receive(PIECE)):
                    left -= len(data)


_HOST = frozenset((b"host",))


def _without_expect(headers: _http.Headers) -> _http.Headers:
    """Its body is on the way: we have told the program to go on."""
    return [(name, value) for name, value in headers if name != b"expect"]


async def both_ways(one: Stream, other: Stream) -> None:
    """Carry bytes in both directions until both have ended, one broke, or nothing came for a long time."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(IDLE_FOR) as limit:

        async def carry(source: Stream, target: Stream) -> None:
            while data := await source.receive(PIECE):
                await target.send(data)
                limit.reschedule(loop.time() + IDLE_FOR)
            target.finish()

        there, back = asyncio.create_task(carry(one, other)), asyncio.create_task(carry(other, one))
        try:
            done, _ = await asyncio.wait([there, back], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.wait([there, back])
            for task in (there, back):
                if not task.cancelled():
                    task.exception()
