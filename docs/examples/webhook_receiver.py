"""Takes what a webhook posts, believes it when it is well signed, and prints each event that it has not seen before.

WEBHOOK_SECRET=whsec_… python webhook_receiver.py PORT

Nothing but Python is needed. It answers before it works: a webhook gets its next post when this one is answered.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread

TOLERANCE = 300
posts: "SimpleQueue[bytes]" = SimpleQueue()


def is_signed(secret: str, headers: "dict[str, str]", body: bytes) -> bool:
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = headers.get("webhook-signature", "").split(" ")  # two, while a secret is rotated
    return any(hmac.compare_digest(wanted.encode(), one.encode()) for one in given)


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        good = is_signed(os.environ["WEBHOOK_SECRET"], {name.lower(): text for name, text in self.headers.items()}, body)
        self.send_response(204 if good else 401)
        self.end_headers()
        if good:
            posts.put(body)

    def log_message(self, *_: object) -> None:
        pass


def work() -> None:
    seen: set[str] = set()  # keep them for a day, where they outlive a restart
    while True:
        post = json.loads(posts.get())
        for event in post["data"]["events"]:
            if event["id"] not in seen:
                seen.add(event["id"])
                print(post["type"], event["event"], event["id"], flush=True)


if __name__ == "__main__":
    Thread(target=work, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
