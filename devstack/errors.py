"""What this package raises on purpose."""


class StartFailed(Exception):
    """Something did not come up. The text is one line: what failed, why, and what to do about it."""
