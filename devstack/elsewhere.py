"""A place outside for what the unprivileged user must reach, when a folder of ours lies below one that it may not enter.

Each place is a folder `devstack-XXXX` below /var/tmp (or the temporary folder) with a file `of` that names what it stands
in for. So it is found again at the next start, and swept when what it stood in for is gone.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from devstack.account import Account, can_write

_PREFIX = "devstack-"


def data_folder(wanted: Path, account: Account | None) -> Path:
    """`wanted`, made and owned by the account; or one that the account can reach, with a link at `wanted`."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if account is None:
        wanted.mkdir(mode=0o700, exist_ok=True)
        return wanted
    if wanted.is_symlink():
        if wanted.is_dir():
            return wanted.resolve()
        wanted.unlink()
    wanted.mkdir(mode=0o700, exist_ok=True)
    os.chown(wanted, account.uid, account.gid)
    if can_write(wanted, account) or any(wanted.iterdir()):
        return wanted
    wanted.rmdir()
    forget(wanted)  # of a home that was removed and made anew: its data is not wanted back
    folder = place(wanted) / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, account.uid, account.gid)
    wanted.symlink_to(folder)
    return folder


def place(of: Path) -> Path:
    """The place that stands in for `of`, made when there is none."""
    sweep()
    for folder, stands_for in _places():
        if stands_for == of.absolute():
            return folder
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=next(_roots())))
    folder.chmod(0o711)
    (folder / "of").write_text(str(of.absolute()))
    return folder


def forget(of: Path) -> None:
    """Removes the place of `of`, if there is one."""
    for folder, stands_for in _places():
        if stands_for == of.absolute():
            shutil.rmtree(folder, ignore_errors=True)


def forget_below(home: Path) -> None:
    """Removes the places of all that lies below a folder."""
    for folder, stands_for in _places():
        if home.absolute() in stands_for.parents:
            shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Removes the places of what exists no more: a clone or a test's folder that was deleted."""
    for folder, stands_for in _places():
        if not stands_for.parent.exists():
            shutil.rmtree(folder, ignore_errors=True)


def _roots() -> Iterator[Path]:
    for root in dict.fromkeys((Path("/var/tmp"), Path(tempfile.gettempdir()))):
        if root.is_dir():
            yield root


def _places() -> Iterator[tuple[Path, Path]]:
    for root in _roots():
        for folder in root.glob(_PREFIX + "*"):
            # Anybody may make such a folder; only our own is trusted.
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.geteuid() and not folder.is_symlink():
                    yield folder, Path((folder / "of").read_text())
