"""The grammar of the few commands that carry something (RFC 5321 4.1.2), and the one header that the sink reads."""

import re

MAX_SIZE = 32 * 1024 * 1024

_PATH = rb'<((?:[^<>"\s\\]|"(?:[^"\\]|\\.)*")*)>((?: +[^ ]+)*) *'
_MAIL = re.compile(rb"MAIL FROM: ?" + _PATH, re.IGNORECASE)
_RCPT = re.compile(rb"RCPT TO: ?" + _PATH, re.IGNORECASE)
_MESSAGE_ID = re.compile(rb"\nmessage-id[ \t]*:\s*([^\r\n]*)", re.IGNORECASE)


class Refusal(Exception):
    """Carries the reply."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply


def read_mail(line: bytes) -> tuple[bytes, bool]:
    """The sender, and whether SMTPUTF8 was asked for."""
    found = _MAIL.fullmatch(line)
    if not found:
        raise Refusal(b"501 5.5.4 MAIL FROM:<address> is the syntax")
    sender, parameters = found.groups()
    utf8 = bool(parameters) and _read_parameters(parameters)
    _need_ascii(sender, utf8)
    return sender, utf8


def read_rcpt(line: bytes, utf8: bool) -> bytes:
    """The recipient."""
    found = _RCPT.fullmatch(line)
    if not found or not _is_mailbox(found[1]):
        raise Refusal(b"501 5.5.4 RCPT TO:<address> is the syntax")
    recipient, parameters = found.groups()
    if parameters:
        raise Refusal(b"555 5.5.4 parameter not known")
    _need_ascii(recipient, utf8)
    return recipient


def message_id(buffer: bytearray, start: int, end: int) -> bytes:
    """The header's value in a mail that lies between the CRLF at `start` and the CRLF at `end`; empty when there is none."""
    head = buffer.find(b"\r\n\r\n", start, end + 4)
    found = _MESSAGE_ID.search(buffer, start, head + 2 if head >= 0 else end + 2)
    return found[1].rstrip() if found else b""


def _read_parameters(parameters: bytes) -> bool:
    utf8 = False
    for parameter in parameters.upper().split():
        name, _, value = parameter.partition(b"=")
        if name == b"SIZE" and value.isdigit():
            if int(value) > MAX_SIZE:
                raise Refusal(b"552 5.3.4 too big")
        elif parameter == b"SMTPUTF8":
            utf8 = True
        elif name != b"BODY" or value not in (b"7BIT", b"8BITMIME"):
            raise Refusal(b"555 5.5.4 parameter not known")
    return utf8


def _need_ascii(address: bytes, utf8: bool) -> None:
    if not utf8 and not address.isascii():
        raise Refusal(b"553 5.6.7 SMTPUTF8 was not asked for")


def _is_mailbox(address: bytes) -> bool:
    return 0 < len(address) <= 254 and (address.rfind(b"@") > 0 or address.lower() == b"postmaster")
