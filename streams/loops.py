"""The processes beside the Faust workers: release, maintenance, webhooks. A signal stops them behind the round in hand."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from core.settings import Settings
from streams.maintenance import run_maintenance
from streams.release import run_release
from streams.resources import Resources, open_resources
from streams.webhooks import run_webhooks

Loop = Callable[[Resources, asyncio.Event], Awaitable[None]]
FINISH_WITHIN = 20.0

LOOPS: dict[str, Loop] = {"release": run_release, "maintenance": run_maintenance, "webhooks": run_webhooks}


async def run_loop(name: str, settings: Settings) -> int:
    """0 after SIGTERM or SIGINT, also when the round under way had to be cut off: every step can be repeated."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with open_resources(settings) as use:
        if ready_file := os.environ.get("READY_FILE"):
            Path(ready_file).touch()
        work = asyncio.ensure_future(LOOPS[name](use, stopping))
        told = asyncio.create_task(stopping.wait())
        await asyncio.wait([work, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        _, late = await asyncio.wait([work], timeout=FINISH_WITHIN)
        if late:
            work.cancel()
            await asyncio.wait([work], timeout=1)
        elif error := work.exception():
            raise error
    return 0
