"""The body of a campaign send, whatever its form: the order, and its recipients in the body or as a stream behind it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from api.bodies import collect, read_body, too_large
from api.errors import UnsupportedType
from api.forms import Form
from api.orders import Order, read_order, read_streamed_order
from api.rows import (
    FORM,
    GZIPS,
    JSON,
    NDJSON,
    TYPES,
    Format,
    Incoming,
    gunzip_of,
    open_stream,
    pieces,
    read_file,
    read_type,
)
from core.errors import InvalidInput
from core.upload import BOM, Gunzip
from schemas.http.imports import ImportOptions
from schemas.http.sends import SEND_MAX_BYTES, SEND_ORDER_MAX_BYTES

ORDER: Final = "order"
ACCEPTED: Final = (JSON, NDJSON, FORM)
WAY_ROUND: Final = (
    f"more recipients go as a stream, {NDJSON} with the order in its first line or a form with the order and a file; or import"
    " them as leads and send to a selection"
)
FORM_FIELDS: Final = {
    "type": "object",
    "required": [ORDER, "file"],
    "properties": {
        ORDER: {
            "type": "string",
            "description": "JSON: a SendRequest without recipients and selection. Before the file.",
        },
        "file": {"type": "string", "format": "binary", "description": "CSV with a header, or NDJSON; gzip or not."},
    },
}
"""For OpenAPI."""
ORDER_WAY_ROUND: Final = "the order has everything but the recipients, who come behind it"


@dataclass(frozen=True, slots=True)
class SendBody:
    """`stream`: rows that are still to be read, None where the order says it all."""

    order: Order
    stream: Incoming | None


async def open_send(request: Request, content_type: str, content_encoding: str) -> SendBody:
    """Reads as far as the order goes; of JSON, all of it. Raises UnsupportedType, TooLarge, InvalidInput."""
    kind, _, boundary = read_type(content_type)
    gunzip = gunzip_of(content_encoding)
    if kind == FORM:
        return await _form(
            Form(pieces(request.stream(), gunzip), boundary, fields_max=2 * SEND_ORDER_MAX_BYTES, never_a_file=ORDER)
        )
    if TYPES.get(kind) is Format.NDJSON or kind in GZIPS:
        body = pieces(request.stream(), gunzip)
        return await _lines(pieces(body, Gunzip()) if kind in GZIPS else body)
    if kind in TYPES:
        raise UnsupportedType(f"a file of recipients comes in a form, behind its order: {FORM}")
    if gunzip is None:
        return SendBody(read_order(await read_body(request, SEND_MAX_BYTES, WAY_ROUND)), None)
    return SendBody(read_order(await collect(pieces(request.stream(), gunzip), SEND_MAX_BYTES, WAY_ROUND)), None)


async def _form(form: Form) -> SendBody:
    file = await form.open()
    others = set(form.fields) - {ORDER}
    if others:
        raise InvalidInput(min(others), f"the form has a field {ORDER}, then a file, and no other fields")
    orders = form.fields.get(ORDER, [])
    if len(orders) != 1:
        raise InvalidInput(ORDER, f"the form needs one field {ORDER} before its file", "missing")
    order = read_streamed_order(orders[0].encode())
    return SendBody(order, await open_stream(form.read(), ImportOptions.model_validate({}), *read_file(file)))


async def _lines(body: AsyncIterator[bytes]) -> SendBody:
    first, rest = await _first_line(body)
    order = read_streamed_order(first)
    return SendBody(order, await open_stream(rest, ImportOptions.model_validate({}), Format.NDJSON, None, False))


async def _first_line(body: AsyncIterator[bytes]) -> tuple[bytes, AsyncIterator[bytes]]:
    """The first line that is not blank, and all behind it."""
    held = bytearray()
    async for piece in body:
        held += piece
        if not held.strip():
            held.clear()
        end = held.find(b"\n", len(held) - len(held.lstrip()))
        if end >= 0 or len(held) > SEND_ORDER_MAX_BYTES:
            break
    else:
        end = len(held)
    line, behind = bytes(held[:end]), bytes(held[end:])
    if end < 0 or len(line) > SEND_ORDER_MAX_BYTES:
        raise too_large(SEND_ORDER_MAX_BYTES, ORDER_WAY_ROUND)

    async def rest() -> AsyncIterator[bytes]:
        yield behind
        async for piece in body:
            yield piece

    return line.removeprefix(BOM), rest()
