"""The user that Postgres runs as when we are root (it refuses root), and what that user can reach."""

import grp
import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    uid: int
    gid: int


def unprivileged() -> Account | None:
    """`nobody` when we are root, None when we are not: then every program runs as ourselves."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    try:
        gid = grp.getgrnam("nogroup").gr_gid
    except KeyError:  # Red Hat and its kin
        gid = nobody.pw_gid
    return Account(nobody.pw_uid, gid)


def can_write(folder: Path, account: Account) -> bool:
    """Asked by trying, in the account's own skin: modes, ACLs and mounts all have a say."""
    return _as(account, ["test", "-w", str(folder), "-a", "-x", str(folder)])


def can_run(binary: Path, account: Account) -> bool:
    """Whether the account can load the binary and its libraries."""
    return _as(account, [str(binary), "--version"])


def _as(account: Account, argv: list[str]) -> bool:
    try:
        done = subprocess.run(
            argv, user=account.uid, group=account.gid, extra_groups=[], cwd="/", capture_output=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
