"""Where the API is, and the key for it: from the environment, else as `login` has stored it."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import click
import msgspec

URL, KEY, USER = "MAILGENIUS_URL", "MAILGENIUS_KEY", "MAILGENIUS_USER"


class Profile(msgspec.Struct, frozen=True):
    """`user`: whom a service key acts for, unless a command says otherwise."""

    url: str
    key: str
    user: str | None = None


def path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    # XDG: a relative path in the variable counts as none.
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    return folder / "mailgenius" / "config.json"


def read() -> Profile:
    """Raises click.UsageError when there is none."""
    stored = _stored()
    url, key = os.environ.get(URL), os.environ.get(KEY)
    if stored is not None and url and not key and url.rstrip("/") != stored.url.rstrip("/"):
        raise click.UsageError(f"{URL} is not where the stored key is for ({stored.url}): set {KEY}, too")
    if stored is not None:
        url, key = url or stored.url, key or stored.key
    if not url or not key:
        raise click.UsageError(f"where is the API? Run `mailgenius login`, or set {URL} and {KEY}")
    return Profile(url, key, os.environ.get(USER) or (stored.user if stored is not None else None))


def write(profile: Profile) -> Path:
    """For its owner's eyes alone, and never half."""
    to = path()
    to.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with NamedTemporaryFile(dir=to.parent, prefix=".config-", delete=False) as file:  # made with 0600
        file.write(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
    Path(file.name).replace(to)
    return to


def remove() -> bool:
    """False: there was none."""
    there = path().exists()
    path().unlink(missing_ok=True)
    return there


def _stored() -> Profile | None:
    try:
        return msgspec.json.decode(path().read_bytes(), type=Profile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise click.UsageError(f"{path()} cannot be read: {error}; `mailgenius login` writes it anew") from None
