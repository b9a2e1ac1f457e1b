"""Request bodies that are read by ourselves, within a bound."""

from collections.abc import AsyncIterator
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from api.errors import invalid_body
from core.errors import TooLarge

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, limit: int, way_round: str) -> bytes:
    """Raises TooLarge as soon as it is known that the body has more than `limit` bytes."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large(limit, way_round)
    return await collect(request.stream(), limit, way_round)


async def collect(body: AsyncIterator[bytes], limit: int, way_round: str) -> bytes:
    """As read_body, of bytes that may have been packed."""
    whole = bytearray()
    async for block in body:
        whole += block
        if len(whole) > limit:
            raise too_large(limit, way_round)
    return bytes(whole)


def too_large(limit: int, way_round: str) -> TooLarge:
    return TooLarge(f"the body is larger than {limit // 2**20} MiB; {way_round}")


async def read_model(request: Request, model: type[M], limit: int, way_round: str) -> M:
    """The body as `model`; an empty one as an object without fields. Raises InvalidInput, TooLarge."""
    body = await read_body(request, limit, way_round)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise invalid_body(error) from None
