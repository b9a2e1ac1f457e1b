"""Tells what became of mails: JSON on standard input, one event or a list of up to 1,000, signed as Standard Webhooks has it.

FEEDBACK_SECRET=whsec_… python feedback_sender.py URL WEBHOOK_ID < events.json

URL is the API's address and the source's `path`. Nothing but Python is needed. The same WEBHOOK_ID again changes nothing, so
send it again after whatever is no answer.
"""

import base64
import hashlib
import hmac
import os
import sys
import time
import urllib.request


def signature(secret: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def main(url: str, webhook_id: str) -> None:
    body = sys.stdin.buffer.read()
    timestamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(os.environ["FEEDBACK_SECRET"], webhook_id, timestamp, body),
    }
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method="POST")) as answer:
        print(answer.read().decode())


if __name__ == "__main__":
    main(*sys.argv[1:3])
