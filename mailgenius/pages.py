"""Pages that follow one another, as one stream."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

Page = TypeVar("Page")
T = TypeVar("T")


async def each(read: Callable[[Any], Awaitable[Page]], items: Callable[[Page], Sequence[T]]) -> AsyncIterator[T]:
    """`read` gets the `next` of the page before; None for the first. A page may be empty, and have one all the same."""
    after: Any = None
    while True:
        page = await read(after)
        for item in items(page):
            yield item
        after = getattr(page, "next")  # noqa: B009
        if after is None:
            return
