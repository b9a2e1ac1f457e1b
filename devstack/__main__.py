"""`python -m devstack up|down|status|servers|clean|demo`: everything on this machine, from packages."""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devstack import elsewhere, lock
from devstack.errors import StartFailed
from devstack.kafka import class_path, java
from devstack.ports import Ports
from devstack.stack import ROOT
from devstack.supervisor import SERVERS_ONLY, Plan, read_plan, read_state, supervise, tell_through

HOME = Path(".devstack")
# Our processes have 25 s, the servers after them some seconds each.
STOP_WITHIN = 75.0


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 with one line on standard error when it could not be done."""
    chosen = _parser().parse_args(arguments)
    home = Path(chosen.home).absolute()
    try:
        command: Callable[[argparse.Namespace, Path], int] = chosen.do
        return command(chosen, home)
    except StartFailed as error:
        print(f"devstack {chosen.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devstack", description=__doc__)
    parser.add_argument("--home", default=HOME, help="where data and logs are; %(default)s unless given")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, do, text in (
        ("up", up, "start everything, and leave it running"),
        ("servers", servers, "start only Kafka, Postgres, Valkey and the mail sink, until Ctrl-C"),
        ("supervise", _supervise, "what `up` leaves behind"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(do=do)
        for port in Ports.__dataclass_fields__:
            command.add_argument(f"--{port}-port", type=int, metavar="PORT", help="any free one unless given")
        command.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
        command.add_argument("--report", type=int, default=-1, help=argparse.SUPPRESS)
    for name, do_plain, text in (
        ("down", down, "stop what `up` started"),
        ("status", status, "what runs; exit code 1 when nothing does"),
        ("clean", clean, "stop, and remove all data"),
        ("demo", demo, "the main job on real servers"),
        ("prefetch", prefetch, "get Kafka's jars, so that later starts need no network"),
    ):
        commands.add_parser(name, help=text).set_defaults(do=do_plain)
    return parser


def up(chosen: argparse.Namespace, home: Path) -> int:
    if lock.is_held(home / "lock"):
        return _already_running(home)
    home.mkdir(parents=True, exist_ok=True)
    log = home / "supervisor.log"
    reading, writing = os.pipe()
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "devstack", "--home", str(home), *_supervisor_arguments(chosen, writing)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=[writing],
        )
    os.close(writing)
    try:
        with os.fdopen(reading) as report:
            for line in report:
                kind, what = json.loads(line)
                if kind != "step":
                    return _outcome(kind, what, supervisor, home)
                print(what, flush=True)
    except KeyboardInterrupt:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait()
        raise
    raise StartFailed(f"the supervisor ended with code {supervisor.wait()} (log: {log})")


def servers(chosen: argparse.Namespace, home: Path) -> int:
    def tell(kind: str, what: Any) -> None:
        if kind == "ready":
            for name, value in what["state"]["environment"].items():
                print(f"export {name}={value}", flush=True)
        else:
            print(what if kind == "step" else f"devstack servers: {what}", file=sys.stderr, flush=True)

    return supervise(home, _ports(chosen), SERVERS_ONLY, tell)


def down(chosen: argparse.Namespace, home: Path) -> int:
    if not lock.send(home / "lock", signal.SIGTERM):
        print("nothing runs")
        return 0
    if not lock.wait_released(home / "lock", STOP_WITHIN):
        # Its children die with it.
        lock.send(home / "lock", signal.SIGKILL)
        if not lock.wait_released(home / "lock", 10):
            raise StartFailed(f"what works in {home} cannot be stopped")
    print("stopped")
    return 0


def status(chosen: argparse.Namespace, home: Path) -> int:
    holder = lock.holder(home / "lock")
    if holder is None:
        print("nothing runs")
        return 1
    state = read_state(home)
    print(f"{'running' if state else 'starting or stopping'}, supervisor pid {holder.pid}")
    if state:
        for name, pid in state["pids"].items():
            print(f"  {name:<12} pid {pid}")
        _print_addresses(state)
    return 0


def clean(chosen: argparse.Namespace, home: Path) -> int:
    if not home.exists():
        print("nothing to remove")
        return 0
    if home.name != HOME.name and not (home / "lock").exists():
        raise StartFailed(f"{home} is not a folder that devstack made; remove it by hand if you mean it")
    for path in [home / "lock", *home.glob("*/lock")]:
        if lock.is_held(path):
            found = lock.holder(path)
            raise StartFailed(
                f"process {found.pid if found else '?'} works in {path.parent}; stop it first (make down)"
            )
    elsewhere.forget_below(home)
    shutil.rmtree(home)
    print("removed")
    return 0


def demo(chosen: argparse.Namespace, home: Path) -> int:
    run: Callable[[Path], int] = importlib.import_module("devstack.demo").main  # it draws with rich: slow to import
    return run(home / "demo")


def prefetch(chosen: argparse.Namespace, home: Path) -> int:
    java()
    class_path()
    return 0


def _supervise(chosen: argparse.Namespace, home: Path) -> int:
    plan = read_plan(chosen.plan) if chosen.plan else Plan()
    return supervise(home, _ports(chosen), plan, tell_through(chosen.report))


def _outcome(kind: str, what: Any, supervisor: "subprocess.Popen[bytes]", home: Path) -> int:
    if kind == "ready":
        _print_addresses(what["state"])
        if what["key"]:
            print(f"API key, shown only this once:\n{what['key']}")
        supervisor.returncode = 0  # it is meant to live on; without this Popen would complain
        return 0
    supervisor.wait()
    if kind == "in use":  # two at the same moment: the other one won
        return _already_running(home)
    raise StartFailed(what)


def _already_running(home: Path) -> int:
    state = read_state(home)
    print("running already" if state else "starting or stopping already: see `python -m devstack status`")
    if state:
        _print_addresses(state)
    return 0


def _print_addresses(state: dict[str, dict[str, Any]]) -> None:
    for name, value in state["environment"].items():
        print(f"  {name}={value}")


def _ports(chosen: argparse.Namespace) -> Ports:
    return Ports(**{name: getattr(chosen, f"{name}_port") for name in Ports.__dataclass_fields__})


def _supervisor_arguments(chosen: argparse.Namespace, report: int) -> list[str]:
    ports = [(name, getattr(chosen, f"{name}_port")) for name in Ports.__dataclass_fields__]
    arguments = [f"--{name}-port={port}" for name, port in ports if port is not None]
    plan = [f"--plan={chosen.plan.absolute()}"] if chosen.plan else []
    return ["supervise", f"--report={report}", *arguments, *plan]


if __name__ == "__main__":
    sys.exit(main())
