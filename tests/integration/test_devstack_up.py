"""`python -m devstack` as its users run it, with processes that do nothing instead of ours."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devstack import lock
from devstack.errors import StartFailed
from devstack.life import Process
from devstack.ports import Ports
from devstack.processes import Processes
from devstack.stack import Stack
from devstack.supervisor import read_state

ROOT = Path(__file__).parents[2]
_IDLE = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit(0)))
Path(os.environ["READY_FILE"]).touch()
while True: time.sleep(0.02)
"""
_STUBBORN = _IDLE.replace('lambda *_: (print("asked to stop", flush=True), sys.exit(0))', "signal.SIG_IGN")
PLAN: dict[str, Any] = {
    "before": [["-c", "import os; assert os.environ['DATABASE_URL']"]],
    "processes": [{"name": "one", "argv": ["-c", _IDLE]}, {"name": "two", "argv": ["-c", _IDLE]}],
    "key": ["-c", "print('the key')"],
}


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".devstack"
        self.plan(PLAN)

    def plan(self, plan: dict[str, Any]) -> None:
        (self.folder.parent / "plan.json").write_text(json.dumps(plan))

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "devstack", "--home", str(self.folder), *arguments]
        if arguments[0] == "up":
            command.append(f"--plan={self.folder.parent / 'plan.json'}")
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        with self.start(*arguments) as process:
            output, complaint = process.communicate(timeout=120)
            return process.returncode, output, complaint

    def pids(self) -> dict[str, int]:
        state = read_state(self.folder)
        return state["pids"] if state else {}

    def supervisor(self) -> int:
        found = lock.holder(self.folder / "lock")
        assert found is not None
        return found.pid

    def living(self) -> list[str]:
        """Command lines and logs' owners that belong to this home."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                output = os.readlink(process / "fd" / "1")
            except OSError:
                continue
            if command and (str(self.folder).encode() in command or output.startswith(str(self.folder))):
                found.append(command.replace(b"\0", b" ").decode()[:200])
        return found

    def wait_empty(self, seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while living := self.living():
            assert time.monotonic() < deadline, living
            time.sleep(0.05)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.run("down")
    made.wait_empty()
    made.run("clean")


def test_up_status_up_again_and_down(home: Home) -> None:
    code, output, complaint = home.run("up")
    assert (code, complaint) == (0, "")
    assert output.endswith("\nthe key\n")
    assert "DATABASE_URL=postgresql://postgres@127.0.0.1:" in output
    assert set(home.pids()) == {"valkey", "postgres", "kafka", "sink", "one", "two"}

    code, again, complaint = home.run("up")
    assert (code, complaint) == (0, "")
    assert again.startswith("running already\n")
    assert re.findall(r"DATABASE_URL=\S+", again) == re.findall(r"DATABASE_URL=\S+", output)
    code, told, _ = home.run("status")
    assert code == 0
    assert f"supervisor pid {home.supervisor()}" in told

    code, _, complaint = home.run("clean")
    assert code == 1
    assert "stop it first" in complaint

    assert home.run("down") == (0, "stopped\n", "")
    home.wait_empty(2)
    assert (home.folder / "logs" / "one.log").read_text() == "asked to stop\n"
    assert home.run("down") == (0, "nothing runs\n", "")
    assert home.run("status") == (1, "nothing runs\n", "")
    assert home.run("clean") == (0, "removed\n", "")
    assert not home.folder.exists()


def test_after_a_kill_nothing_lives_and_the_next_up_heals_and_has_the_data(home: Home) -> None:
    home.run("up")
    with pytest.raises(lock.InUse, match="in use by process"):
        Stack(home.folder)
    state = read_state(home.folder)
    assert state is not None
    _sql(state["environment"]["DATABASE_URL"], "create table kept as select 7 as number")
    os.kill(home.supervisor(), signal.SIGKILL)
    home.wait_empty()
    assert home.run("status") == (1, "nothing runs\n", "")
    assert home.run("down") == (0, "nothing runs\n", "")
    code, output, _ = home.run("up")
    assert code == 0
    dsn = re.findall(r"DATABASE_URL=(\S+)", output)[0]
    assert _sql(dsn, "select number from kept") == 7


def test_what_dies_is_started_again(home: Home) -> None:
    home.run("up")
    before = home.pids()
    for name in ("one", "valkey", "postgres"):
        os.kill(before[name], signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (after := home.pids()).keys() != before.keys() or any(
        after[name] == before[name] for name in ("one", "valkey", "postgres")
    ):
        assert time.monotonic() < deadline, after
        time.sleep(0.05)
    assert after["two"] == before["two"]
    told = (home.folder / "supervisor.log").read_text()
    assert f"one (pid {before['one']}) ended with code -9; again in 1 s" in told


def test_an_up_that_fails_is_one_line_and_leaves_nothing(home: Home) -> None:
    home.plan(PLAN | {"processes": [{"name": "bad", "argv": ["-c", "raise SystemExit('ERROR: no luck')"]}]})
    code, _, told = home.run("up")
    assert code == 1
    assert told.startswith("devstack up: bad ended with code 1: ERROR: no luck (log: ")
    assert told.count("\n") == 1
    home.wait_empty(2)


def test_two_ups_at_once_start_one_stack(home: Home) -> None:
    with home.start("up") as first, home.start("up") as second:
        outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0]
    assert sorted("already" in output for output in outputs) == [False, True]


def test_ctrl_c_during_up_leaves_nothing(home: Home) -> None:
    with home.start("up") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
    home.wait_empty(2)


def test_servers_run_in_the_foreground_until_ctrl_c(home: Home) -> None:
    with home.start("servers") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("export DATABASE_URL=")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
    home.wait_empty(2)


def test_processes_in_the_foreground_are_stopped_or_killed(home: Home) -> None:
    spec = (Process("polite", ("-c", _IDLE)), Process("stubborn", ("-c", _STUBBORN)))
    with Stack(home.folder, durable=False) as stack:
        with (
            pytest.raises(StartFailed, match="bad ended with code 3"),
            Processes(stack, (spec[0], Process("bad", ("-c", "exit(3)")))),
        ):
            pass
        processes = Processes(stack, spec, {"EXTRA": "1"})
        processes.start()
        assert len(processes.pids()) == 2
        assert processes.api_url == f"http://127.0.0.1:{stack.api_port}"
        processes.stop(within=0.5)
        assert processes.pids() == {}
    home.wait_empty(2)
    with Stack(home.folder, fresh=True, ports=Ports(kafka=stack.kafka.port)) as again:
        assert again.kafka.port == stack.kafka.port
        assert again.environment()["KAFKA_BOOTSTRAP_SERVERS"] == f"127.0.0.1:{stack.kafka.port}"
    again.erase()
    assert not home.folder.exists()


def test_a_stack_whose_one_server_fails_leaves_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise StartFailed("valkey: no luck")

    stack = Stack(home.folder, durable=False)
    monkeypatch.setattr(stack.valkey, "launch", fail)
    with pytest.raises(StartFailed, match="valkey: no luck"):
        stack.start()
    home.wait_empty(2)
    assert not lock.is_held(home.folder / "lock")


def test_a_failed_installation_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "devstack").mkdir()
    script = tmp_path / "devstack" / "install.py"
    script.write_bytes((ROOT / "devstack" / "install.py").read_bytes())
    (tmp_path / "requirements-dev.lock").write_text("no-such-package-of-ours==1.0 --hash=sha256:" + "0" * 64 + "\n")
    environment = {"PATH": os.environ["PATH"], "PIP_NO_INDEX": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("install: pip cannot install requirements-dev.lock: ERROR: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv" / ".installed").exists()


def _sql(dsn: str, statement: str) -> Any:
    import asyncio

    import asyncpg

    async def run() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())
