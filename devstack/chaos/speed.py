"""How fast mails arrive at the sink, while it lives."""

import time
from collections import deque

import httpx

WINDOW = 2.0
"""Seconds over which a speed is taken."""
LOOK = 0.2


class Speed:
    """Of all that arrives."""

    def __init__(self, sink_url: str) -> None:
        self._url = f"{sink_url}/stats"

    def steady(self, seconds: float, within: float = 60.0) -> float:
        """Mails a second over so many seconds, once they flow. Raises TimeoutError when they do not."""
        deadline = time.monotonic() + within
        while not self._accepted():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing arrived within {within:.0f} s")
            time.sleep(LOOK)
        time.sleep(1.0)  # of the first second little is typical
        begun, before = time.monotonic(), self._accepted() or 0
        time.sleep(seconds)
        return ((self._accepted() or 0) - before) / (time.monotonic() - begun)

    def reached(self, least: float, within: float) -> float | None:
        """Seconds from now until mails arrive with this speed again; None when they do not in time."""
        begun = time.monotonic()
        seen: deque[tuple[float, int]] = deque()
        while time.monotonic() - begun < within:
            accepted = self._accepted()
            now = time.monotonic()
            if accepted is not None:
                seen.append((now, accepted))
                while now - seen[0][0] > WINDOW and now - seen[1][0] >= WINDOW:
                    seen.popleft()
                passed = now - seen[0][0]
                if passed >= WINDOW and (accepted - seen[0][1]) / passed >= least:
                    return max(0.0, seen[0][0] - begun)
            time.sleep(LOOK)
        return None

    def _accepted(self) -> int | None:
        try:
            accepted: int = httpx.get(self._url, timeout=1.0).json()["accepted"]
        except (httpx.HTTPError, ValueError):
            return None
        return accepted
