"""What runs while faults strike: sends, an import, single mails, each of a client that does as clients are told."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from devstack.chaos.place import DELAY
from devstack.sample import Sample, make_sample

SEND, IMPORT, EMAILS = "/api/queue/campaigns/send", "/api/queue/leads/import", "/api/queue/emails"
PROGRESS, LIMIT = "/api/queue/progress", "/api/queue/rate-limit"
SENDER = {"email": "news@example.com", "name": "News"}
TEMPLATE = {"subject": "Hi {{name}}", "html": "<p>Hello {{name}}</p>", "text": "Hello {{name}}"}
RATE, BURST, BULK_SHARE = 100, 20, 0.9
CONNECTIONS = 16
"""Of two workers."""
PIECE = 32 * 1024
EVERY = 0.1
"""Seconds between two single mails."""
INSIST_FOR = 300.0
AGAIN = (429, 503)
"""What a client repeats, with the same Idempotency-Key."""


class Surprise(Exception):
    """An answer that no client has been told of."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Recipients of the sends, and rows of the import. `seconds`: the upload takes so long."""

    large: int
    resend: int
    skip: int
    limited: int
    late: int
    rows: int
    seconds: float


def sizes_for(seconds: float) -> Sizes:
    """For faults that last so long: the large send is not over before its speed has been measured."""
    full_speed = CONNECTIONS / DELAY
    half_way = int(full_speed * (seconds + 14) / 4)  # of four users that have a share each
    return Sizes(
        large=int(full_speed * (seconds + 40)),
        resend=half_way,
        skip=half_way,
        limited=min(3_000, int(RATE * (seconds + 6))),
        late=500,
        rows=min(100_000, int(4_000 * (seconds + 4))),
        seconds=seconds + 3,
    )


@dataclass(slots=True)
class Load:
    """Of one round, with users of its own: `name` stands before theirs."""

    client: httpx.Client
    pool: ThreadPoolExecutor
    name: str
    sizes: Sizes
    sends: dict[str, str] = field(default_factory=dict)
    """Ids by what kind of send it is."""
    import_id: str = ""
    singles: int = 0
    """Mails that the API has promised to send."""
    over: threading.Event = field(default_factory=threading.Event)
    _work: list[Future[None]] = field(default_factory=list)

    @property
    def users(self) -> list[str]:
        return [self.user(kind) for kind in ("large", "resend", "skip", "limited", "late", "rows", "single")]

    @property
    def sample(self) -> Sample:
        return make_sample(self.sizes.rows)

    def user(self, kind: str) -> str:
        return f"{self.name}-{kind}"

    def begin(self) -> None:
        """What is under way before the fault."""
        limit = {"name": "email-sending", "rate": RATE, "burst": BURST}
        self.ask("PUT", LIMIT, params={"userId": self.user("limited")}, json=limit)
        self._send("limited", self.sizes.limited)
        self._send("skip", self.sizes.skip, onDoubt="skip")
        self._send("resend", self.sizes.resend)
        self._send("large", self.sizes.large)

    def go_on(self) -> None:
        """What begins just before it, and meets it half way."""
        self._work += [self.pool.submit(work) for work in (self.upload, self._late, self._single_mails)]

    def end(self) -> None:
        """No more comes; what of the large send has not gone is cancelled. Raises Surprise."""
        self.over.set()
        for work in self._work:
            work.result()
        self.cancel()

    def cancel(self) -> None:
        """What of the large send has not gone. Raises Surprise."""
        params = {"userId": self.user("large"), "campaignId": "chaos"}
        self.ask("DELETE", SEND, params=params, headers={"Idempotency-Key": f"{self.name}-end"})

    def progress(self, kind: str, operation: str) -> dict[str, Any] | None:
        """None while nobody answers."""
        try:
            answer = self.client.get(PROGRESS, params={"userId": self.user(kind), "id": operation})
        except httpx.TransportError:
            return None
        return answer.json() if answer.is_success else None

    def operations(self) -> dict[str, str]:
        return {**self.sends, "rows": self.import_id}

    def _send(self, kind: str, recipients: int, **more: Any) -> None:
        body = {
            "campaignId": "chaos",
            "template": TEMPLATE,
            "sender": SENDER,
            "recipients": [{"email": f"p{one}@example{one % 97}.com", "name": f"P {one}"} for one in range(recipients)],
            **more,
        }
        headers = {"Idempotency-Key": f"{self.name}-{kind}"}
        answer = self.ask("POST", SEND, params={"userId": self.user(kind)}, json=body, headers=headers)
        self.sends[kind] = answer["sendId"]

    def _late(self) -> None:
        time.sleep(2)  # into the fault
        self._send("late", self.sizes.late)

    def upload(self) -> None:
        """Of the import, until it is taken; again for one that has become incomplete."""
        data, pauses = self.sample.data, [self.sizes.seconds / (len(self.sample.data) / PIECE)]

        def pieces() -> Iterator[bytes]:
            pause = pauses.pop() if pauses else 0.0  # the first time only
            for at in range(0, len(data), PIECE):
                time.sleep(pause)
                yield data[at : at + PIECE]

        headers = {"Content-Type": "text/csv", "Idempotency-Key": self.name}
        params = {"userId": self.user("rows")}
        self.import_id = self._again(
            lambda: self.client.post(IMPORT, params=params, headers=headers, content=pieces())
        )["importId"]

    def _single_mails(self) -> None:
        body = {"lane": "transactional", "template": TEMPLATE, "sender": SENDER}
        while not self.over.wait(EVERY):
            emails = [{"email": f"single{self.singles}@example.com", "name": "S"}]
            headers = {"Idempotency-Key": f"{self.name}-{self.singles}"}
            params = {"userId": self.user("single")}
            self.ask("POST", EMAILS, params=params, json={**body, "emails": emails}, headers=headers)
            self.singles += 1

    def ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Again and again, until it is answered. Raises Surprise."""
        return self._again(lambda: self.client.request(method, path, **more))

    def _again(self, ask: Callable[[], httpx.Response]) -> dict[str, Any]:
        deadline = time.monotonic() + INSIST_FOR
        while True:
            try:
                answer = ask()
                if answer.is_success:
                    return dict(answer.json()) if answer.content else {}
                if answer.status_code not in AGAIN:
                    raise Surprise(
                        f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:300]}"
                    )
                told = f"{answer.status_code}"
            except httpx.TransportError as error:
                told = repr(error)
            if time.monotonic() > deadline:
                raise Surprise(f"nobody took it within {INSIST_FOR:.0f} s: {told}")
            time.sleep(0.5)
