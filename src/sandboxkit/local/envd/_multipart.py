"""Takes a multipart/form-data body apart as it streams by; holds no more than the piece just fed."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sandboxkit.local.envd._http import Refused

MAX_HEADER = 16 * 1024
"""Bytes of headers that one part may have."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part's headers are complete. Names are as sent: envd undoes no percent-encoding of file names."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    pass


Piece = PartBegin | PartData | PartEnd


class FormReader:
    """Feeds on a body, gives back what became known."""

    def __init__(self, content_type: str) -> None:
        """Raises Refused when the header names no boundary."""
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise Refused(400, "error parsing multipart form: no multipart boundary param in Content-Type")
        self._pieces: list[Piece] = []
        self._disposition = b""
        self._field = bytearray()
        self._value = bytearray()
        self._header_size = 0
        self._complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                callbacks={
                    "on_part_begin": self._on_part_begin,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise Refused(400, f"error parsing multipart form: {error}") from None

    def feed(self, data: bytes) -> list[Piece]:
        """What this much more of the body says. Raises Refused when it is malformed."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Refused(400, f"error reading form: {error}") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> None:
        """The body has ended. Raises Refused when the form has not."""
        if not self._complete:
            raise Refused(400, "error reading form: unexpected EOF")

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._header_size = 0

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_size += size
        if self._header_size > MAX_HEADER:
            raise Refused(400, f"error reading form: a part's headers are longer than {MAX_HEADER} bytes")

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        filename = options.get(b"filename")
        self._pieces.append(
            PartBegin(
                name=options.get(b"name", b"").decode("utf-8", "replace"),
                filename=None if filename is None else filename.decode("utf-8", "surrogateescape"),
            )
        )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(PartData(data[start:end]))

    def _on_part_end(self) -> None:
        self._pieces.append(PartEnd())

    def _on_end(self) -> None:
        self._complete = True
