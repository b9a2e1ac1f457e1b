"""The body of a campaign send, read without looking at each recipient yet."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from pydantic import ValidationError

from api.errors import invalid_body
from core.addresses import Refused, judge
from core.errors import InvalidInput
from core.templates import compile_template
from schemas.http import Sender, SendOrder, Template

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for. `recipients` is None for a selection; `request_hash` tells one request from another."""

    order: SendOrder
    recipients: Sequence[msgspec.Raw] | None
    request_hash: bytes


def read_order(body: bytes) -> Order:
    """Raises InvalidInput; the template and the sender have been tried when it does not."""
    try:
        fields = _decode(body)
        raw = fields.pop("recipients", None)
        recipients = _decode_list(raw) if raw is not None and bytes(raw) != b"null" else None
        order = SendOrder.model_validate({name: msgspec.json.decode(value) for name, value in fields.items()})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput("", f"the body is no JSON object that can be read: {error}", "malformed") from None
    except ValidationError as error:
        raise invalid_body(error) from None
    if (recipients is None) == (order.selection is None):
        raise InvalidInput("recipients", "give either recipients or a selection")
    if recipients is not None and not recipients:
        raise InvalidInput("recipients", "there are none", "empty")
    _try(order.template)
    return Order(_with_sender(order), recipients, hashlib.sha256(body).digest())


def _try(template: Template) -> None:
    for part, source in template:
        if source and "\0" in source:
            raise InvalidInput(f"template.{part}", "it holds the character U+0000, which cannot be stored")
    compile_template(template.subject, template.html, template.text)


def _with_sender(order: SendOrder) -> SendOrder:
    """With addresses as they are written on the wire."""
    sender = order.sender
    reply_to = None if sender.reply_to is None else _address(sender.reply_to, "sender.replyTo")
    judged = Sender(email=_address(sender.email, "sender.email"), name=sender.name, reply_to=reply_to)
    return order.model_copy(update={"sender": judged})


def _address(text: str, field: str) -> str:
    address = judge(text)
    if isinstance(address, Refused):
        raise InvalidInput(field, address.reason, address.code)
    return address.email
