"""Publishes single mails from another system: JSON lines on standard input, each one mail, to emails.tasks or
emails.transactional.

pip install aiokafka
python email_producer.py BOOTSTRAP TOPIC < mails.ndjson

A line: {"userId": "acme", "id": "order-4711", "email": "ada@mail.com", "name": "Ada", "variables": {"order": 4711},
"template": {"subject": "Your order {{order}}", "text": "Hello {{name}}"}, "sender": {"email": "orders@shop.com"}}
The contract is docs/contracts/EmailTask.json. With an `id` of its own a mail published twice is sent once.
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaProducer


async def main(bootstrap: str, topic: str) -> None:
    # acks="all": a mail that the broker has confirmed is not lost when one broker dies.
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=2)
    await producer.start()
    try:
        confirmed = []
        for line in sys.stdin:
            mail = {"v": 1} | json.loads(line)
            confirmed.append(await producer.send(topic, json.dumps(mail).encode(), key=mail["userId"].encode()))
        await asyncio.gather(*confirmed)
    finally:
        await producer.stop()
    print(f"{len(confirmed)} mails are confirmed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
