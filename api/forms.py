"""multipart/form-data read as it comes in: fields, then the first file as a stream. Nothing is kept of the file."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from core.errors import InvalidInput, TooLarge

FIELDS_MAX_BYTES: Final = 64 * 1024
PARTS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class File:
    """What its part's headers say; `content_type` is empty where they do not."""

    name: str
    content_type: str


@dataclass(slots=True)
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    data: bytearray = field(default_factory=bytearray)
    """Of a field."""

    def disposition(self) -> dict[bytes, bytes]:
        return parse_options_header(self.headers.get("content-disposition"))[1]

    def name(self) -> str:
        return self.disposition().get(b"name", b"").decode("utf-8", "replace")

    def file(self) -> File | None:
        """A part with a file name, or with a type of its own."""
        name = self.disposition().get(b"filename")
        content_type = self.headers.get("content-type", "")
        if name is None and (not content_type or content_type.startswith("text/plain")):
            return None
        return File((name or b"").decode("utf-8", "replace"), content_type)


class Form:
    """`fields` and `file` are there once `open` is through; `read` gives the file's bytes. What comes after it is not used.

    `never_a_file` names a part that is a field, also where it says that it is a file or has a type.
    """

    def __init__(
        self,
        body: AsyncIterator[bytes],
        boundary: str,
        *,
        fields_max: int = FIELDS_MAX_BYTES,
        never_a_file: str | None = None,
    ) -> None:
        self.fields: dict[str, list[str]] = {}
        self.file: File | None = None
        self._fields_max = fields_max
        self._never_a_file = never_a_file
        self._body = body
        self._part = _Part()
        self._parts = self._kept = 0
        self._pieces: list[bytes] = []
        self._file_ended = self._ended = False
        if not boundary:
            raise InvalidInput("Content-Type", "the form has no boundary", "form")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._keep(self._part.header, data[start:end]),
                    "on_header_value": lambda data, start, end: self._keep(self._part.value, data[start:end]),
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._all_ends,
                },
            )
        except FormParserError as error:
            raise InvalidInput("Content-Type", f"the form's boundary cannot be used: {error}", "form") from None

    async def open(self) -> File:
        """Reads up to the first file. Raises InvalidInput when there is none."""
        while self.file is None and await self._more():
            pass
        if self.file is None:
            raise InvalidInput("", "the form has no file: a part with a file name", "missing")
        return self.file

    async def read(self) -> AsyncIterator[bytes]:
        """Raises InvalidInput when the form ends before its last boundary."""
        more = True
        while more:
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                yield piece
            more = await self._more()
        for piece in self._pieces:
            yield piece
        if not self._ended:
            raise InvalidInput("", "the form ends early: its last boundary is missing", "form")

    async def _more(self) -> bool:
        async for data in self._body:
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise InvalidInput("", f"the form cannot be read: {error}", "form") from None
            return True
        return False

    def _begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise TooLarge(f"the form has more than {PARTS_MAX} parts")

    def _keep(self, where: bytearray, data: bytes) -> None:
        self._kept += len(data)
        if self._kept > self._fields_max:
            raise TooLarge(f"the form's fields are larger than {self._fields_max // 1024} KiB; rows go into a file")
        where += data

    def _header_ends(self) -> None:
        part = self._part
        # As bytes in a text, which is what parse_options_header makes bytes of again: a name may be in UTF-8.
        part.headers[part.header.decode("latin-1").lower()] = part.value.decode("latin-1")
        part.header, part.value = bytearray(), bytearray()

    def _headers_end(self) -> None:
        if self.file is None and self._part.name() != self._never_a_file:
            self.file = self._part.file()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self.file is None:
            self._keep(self._part.data, data[start:end])
        elif not self._file_ended:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        if self.file is not None:
            self._file_ended = True
            return
        self.fields.setdefault(self._part.name(), []).append(self._part.data.decode("utf-8", "replace"))

    def _all_ends(self) -> None:
        self._ended = True
