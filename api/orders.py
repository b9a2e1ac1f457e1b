"""What a campaign send asks for, read without looking at each recipient yet."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from api.errors import invalid_body
from api.mail_parts import task_sender, task_template
from core.errors import InvalidInput
from core.tasks import checked_sender, try_template
from schemas.http.sends import Sender, SendOrder

START_WITHIN: Final = timedelta(days=366)

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for. `recipients` is None for a selection, and for a stream; `request_hash` tells one request from another:
    of a stream it is over the order alone.
    """

    order: SendOrder
    recipients: Sequence[msgspec.Raw] | None
    request_hash: bytes


def read_order(body: bytes) -> Order:
    """Of a request that is one JSON object. Raises InvalidInput; template and sender have been tried when it does not."""
    fields = _read_fields(body)
    raw = fields.pop("recipients", None)
    try:
        recipients = _decode_list(raw) if raw is not None and bytes(raw) != b"null" else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("recipients", f"it is no list that can be read: {error}", "malformed") from None
    order = _read_order(fields)
    if (recipients is None) == (order.selection is None):
        raise InvalidInput("recipients", "give either recipients or a selection")
    if recipients is not None and not recipients:
        raise InvalidInput("recipients", "there are none", "empty")
    return Order(_tried(order), recipients, hashlib.sha256(body).digest())


def read_streamed_order(text: bytes) -> Order:
    """As read_order, of a request whose recipients come in a stream behind it."""
    fields = _read_fields(text)
    for name in ("recipients", "selection"):
        if name in fields:
            raise InvalidInput(name, "the recipients are those of the stream")
    return Order(_tried(_read_order(fields)), None, hashlib.sha256(b"stream\n" + text.strip()).digest())


def settled(order: SendOrder, relays: Sequence[str], now: datetime) -> SendOrder:
    """The order with what depends on the user's relays and on the time: when it starts.

    Raises InvalidInput for a relay that there is not, and a start that is too far ahead.
    """
    if order.relay is not None and order.relay not in relays:
        raise InvalidInput("relay", f"there is no such relay, only: {', '.join(relays)}")
    if order.start_at is None or order.start_at <= now:
        return order.model_copy(update={"start_at": None})
    if order.start_at > now + START_WITHIN:
        raise InvalidInput("startAt", "it is more than a year ahead")
    return order.model_copy(update={"start_at": order.start_at.astimezone(UTC)})


def _read_fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("", f"the body is no JSON object that can be read: {error}", "malformed") from None


def _read_order(fields: dict[str, msgspec.Raw]) -> SendOrder:
    try:
        values: dict[str, Any] = {name: msgspec.json.decode(value) for name, value in fields.items()}
        return SendOrder.model_validate(values, by_alias=True, by_name=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("", f"the order is no JSON that can be read: {error}", "malformed") from None
    except ValidationError as error:
        raise invalid_body(error) from None


def _tried(order: SendOrder) -> SendOrder:
    """With the addresses of its sender as they are written on the wire."""
    try_template(task_template(order.template, order.missing_variables))
    return order.model_copy(update={"sender": Sender(**checked_sender(task_sender(order.sender)))})
