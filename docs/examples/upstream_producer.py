"""Publishes leads from another system: JSON lines on standard input, each one lead, to the topic leads.upstream.

pip install aiokafka
python upstream_producer.py BOOTSTRAP TOPIC < leads.ndjson

A line: {"userId": "acme", "email": "ada@mail.com", "name": "Ada", "attributes": {"city": "London"}, "tags": ["vip"]}
The contract is docs/contracts/UpstreamLead.json. A lead published twice is stored twice, with the same result.
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaProducer


async def main(bootstrap: str, topic: str) -> None:
    # acks="all": a lead that the broker has confirmed is not lost when one broker dies.
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=20)
    await producer.start()
    try:
        confirmed = []
        for line in sys.stdin:
            lead = {"v": 1} | json.loads(line)
            # The user id as key keeps one user's leads in one partition, and so in order.
            confirmed.append(await producer.send(topic, json.dumps(lead).encode(), key=lead["userId"].encode()))
        await asyncio.gather(*confirmed)
    finally:
        await producer.stop()
    print(f"{len(confirmed)} leads are confirmed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
