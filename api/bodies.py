"""Request bodies that are read by ourselves, within a bound."""

from starlette.requests import Request

from core.errors import TooLarge


async def read_body(request: Request, limit: int, way_round: str) -> bytes:
    """Raises TooLarge as soon as it is known that the body has more than `limit` bytes."""
    refused = TooLarge(f"the body is larger than {limit // 2**20} MiB; {way_round}")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise refused
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise refused
    return bytes(body)
