"""The process a race starts several times: writes down every record it handles, unbuffered, then acknowledges it."""

import argparse
import asyncio
import logging
import os
import random
import sys
from collections.abc import AsyncIterator
from typing import Any

from faust.transport.drivers import aiokafka as driver

from streams.app import make_app, raw_topic, run
from streams.intake import Ack, Intake, Record

PARTITIONS = 8
LONGEST_WORK = 0.1
AT_ONCE = 400
MAX_POLL_RECORDS = 500


class StockConsumer(driver.Consumer):
    """Faust's own, and what `run` and Intake ask of a consumer."""

    def stop_taking(self) -> None: ...
    def resume(self) -> None: ...
    def give_up(self, message: Any) -> None: ...
    def holds(self, message: Any) -> bool:
        return False


async def main(options: argparse.Namespace) -> int:
    app = make_app(
        options.group,
        bootstrap=options.bootstrap,
        partitions=PARTITIONS,
        max_poll_records=MAX_POLL_RECORDS,
        commit_interval=0.5,
    )
    # As short as a broker allows: a race waits for whoever was killed.
    app.conf.broker_session_timeout, app.conf.broker_heartbeat_interval, app.conf.broker_rebalance_timeout = (
        6.0,
        2.0,
        10.0,
    )
    # Faust's default, below our rule: a full buffer in the middle of a fetch is one of the ways to lose the rest of it.
    app.conf.stream_buffer_maxsize = 4096
    if options.consumer == "stock":
        driver.Transport.Consumer = StockConsumer
    topic = raw_topic(app, options.topic, PARTITIONS)
    counts = app.Table("counts", default=int, partitions=PARTITIONS, key_type=str, value_type=int)
    handled = os.open(options.out, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    async def handle(record: Record, ack: Ack) -> None:
        await asyncio.sleep(random.random() * LONGEST_WORK)
        os.write(handled, f"{record.partition} {record.offset}\n".encode())

    async def on_poison(record: Record, error: Exception) -> None:
        raise error

    async def counted(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for event in events:
            counts[event.key.decode()] += 1
            yield event

    intake = Intake(handle, on_poison, limit=AT_ONCE)

    @app.agent(topic)
    async def work(stream: Any) -> None:
        await intake.run(counted(stream.noack().events()), app.consumer)

    code = await run(app, [intake])
    numbers = ("rewinds", "holes", "commit_failures", "stalls", "given_up")
    print("numbers", *(f"{name}={getattr(app.consumer, name, 0)}" for name in numbers), file=sys.stderr)
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--bootstrap", "--group", "--topic", "--out", "--consumer"):
        parser.add_argument(name, required=True)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    sys.exit(asyncio.run(main(parser.parse_args())))
