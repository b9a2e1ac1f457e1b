"""Answers that are files, written as they come."""

import asyncio
import os
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from mailgenius.connection import Connection

Target: TypeAlias = str | os.PathLike[str] | BinaryIO


async def save(connection: Connection, path: str, to: Target, **query: Any) -> int:
    """The number of bytes. One attempt: what broke off raises ConnectionFailed, and the file is not whole."""
    if isinstance(to, str | os.PathLike):
        with await asyncio.to_thread(Path(to).open, "wb") as file:
            return await _save(connection, path, file, query)
    return await _save(connection, path, to, query)


async def _save(connection: Connection, path: str, file: BinaryIO, query: dict[str, Any]) -> int:
    size = 0
    async with connection.stream(path, **query) as answer:
        async for piece in answer.aiter_bytes():
            await asyncio.to_thread(file.write, piece)
            size += len(piece)
    return size
