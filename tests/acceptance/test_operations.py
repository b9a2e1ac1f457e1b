"""The commands that the runbook names run as they stand there, and what they print is for people."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.conftest import System

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## Where to look first"


def commands() -> list[str]:
    text = (ROOT / "docs" / "operations.md").read_text().split(SECTION, 1)[1].split("\n## ", 1)[0]
    block = re.search(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block
    return [line for line in block[1].splitlines() if not line.startswith("#")]


def run(system: System, command: str) -> "subprocess.CompletedProcess[str]":
    path = f"{ROOT / '.venv' / 'bin'}:{system.stack.postgres.programs}:{os.environ['PATH']}"
    environment = {**system.environment, "API": system.processes.api_url, "PATH": path}
    return subprocess.run(
        ["bash", "-c", command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_runbook_runs(system: System, command: str) -> None:
    done = run(system, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_the_doctor_names_every_process_and_dependency(system: System) -> None:
    said = run(system, "python -m streams doctor").stdout
    lines = {line[6:27].strip(): line[:5].strip() for line in said.splitlines() if not line.startswith(" ")}
    wanted = {"postgres", "schema", "senders", "release", "maintenance", "kafka", "topics", "redis", "relay"}
    assert wanted | {f"worker {kind}" for kind in ("leads", "emails", "transactional", "progress")} <= set(lines)
    assert set(lines.values()) == {"ok"}, said


def test_the_doctor_says_what_to_do_about_what_is_away(system: System) -> None:
    gone = "REDIS_PORT=1 SMTP_PORT=1 KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:1 DATABASE_URL=postgresql://postgres@127.0.0.1:1/none"
    done = run(system, f"env {gone} python -m streams doctor")
    assert done.returncode == 1
    assert [line[:10].split() for line in done.stdout.splitlines()[::2]] == [
        ["bad", "post"],
        ["bad", "kafk"],
        ["bad", "work"],
        ["bad", "redi"],
        ["bad", "rela"],
    ]
    assert all("-> " in line for line in done.stdout.splitlines()[1::2])
    assert "KAFKA_BOOTSTRAP_SERVERS" in done.stdout
