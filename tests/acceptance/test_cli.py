"""The command `mailgenius` as a process, on the whole system: each command once, as people and programs call it."""

import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import System, run

ROOT = Path(__file__).resolve().parents[2]
MAILGENIUS = [sys.executable, "-W", "error", "-m", "mailgenius"]
USER = "shop"
LATER = (datetime.now(UTC) + timedelta(days=30)).isoformat()


@dataclass(frozen=True)
class Shell:
    folder: Path
    environment: dict[str, str]

    def call(self, *arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*MAILGENIUS, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def __call__(self, *arguments: str, given: str = "", exits: int = 0) -> str:
        done = self.call(*arguments, given=given)
        assert done.returncode == exits, (arguments, done.stdout, done.stderr)
        return done.stdout

    def json(self, *arguments: str, exits: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self(*arguments, "--json", exits=exits).splitlines()]


@pytest.fixture
def shell(system: System, tmp_path: Path) -> Shell:
    """Logged in with a service key."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAILGENIUS_")}
    environment |= {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "PYTHONPATH": str(ROOT)}
    shell = Shell(tmp_path, environment)
    key = run(system.environment, "-m", "streams", "key", "--scope", "service", "--name", "cli")
    shell("login", "--url", system.processes.api_url, "--user", USER, given=f"{key}\n")
    return shell


def write(path: Path, rows: int, more: str = "") -> str:
    lines = "".join(f"p{number}@example.com,P {number},{number % 2}\n" for number in range(rows))
    path.write_text(f"email,name,odd\n{lines}{more}")
    return path.name


def test_the_way_from_a_file_to_mails_that_arrived(system: System, shell: Shell, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "xdg" / "mailgenius" / "config.json").stat().st_mode) == 0o600
    file = write(tmp_path / "leads.csv", 300, "none,X,0\np1@example.com,Again,1\n")
    [trial] = shell.json("leads", "import", file, "--dry-run")
    assert (trial["stored"], trial["duplicate"], trial["rejected"]) == (300, 1, 1)

    told = shell("leads", "import", file, "--tag", "spring", "--wait", "--rejected", "refused.csv")
    assert "300 stored, 1 duplicate, 1 rejected" in told
    assert "none,X,0" in (tmp_path / "refused.csv").read_text()
    assert [one["email"] for one in shell.json("leads", "search", "--prefix", "p299@")] == ["p299@example.com"]
    assert len(shell.json("leads", "search", "--attribute", "odd=1", "--limit", "0")) == 150
    shell("leads", "export", "all.ndjson")
    assert len((tmp_path / "all.ndjson").read_text().splitlines()) == 300
    assert len(shell("leads", "export", "-", "--tag", "spring").splitlines()) == 301
    assert "leads          1" in shell("leads", "erase", "p200@example.com", "--yes")
    assert shell.json("leads", "search", "--email", "p200@example.com") == []

    (tmp_path / "t.html").write_text("<p>Hello {{name}}</p>")
    order = ["--subject", "Hi {{name}}", "--html", "t.html", "--from", "news@example.com", "--from-name", "News"]
    told = shell("campaigns", "send", "spring", "--tag", "spring", *order, "--wait")
    assert "299 sent" in told
    assert len(system.arrivals().mails) == 299
    [shown] = shell.json("campaigns", "show", "spring")
    assert (shown["state"], shown["counts"]["sent"]) == ("done", 299)
    assert shell.json("campaigns", "list")[0]["sendId"] == shown["sendId"]
    assert "spring" in shell("campaigns", "show", "--send-id", shown["sendId"])
    [mail] = shell.json("mails", "find", "--email", "p5@example.com")
    assert (mail["state"], len(mail["attempts"])) == ("sent", 1)
    assert "250" in shell("mails", "find", "--message-id", mail["messageId"])

    assert {one["kind"] for one in shell.json("progress")} == {"import", "send"}
    assert "299 of 299, done, 299 sent" in shell.call("progress", shown["sendId"], "--follow").stderr
    assert "campaign" not in shell("progress", shown["sendId"])
    assert [one["name"] for one in shell.json("limits")[0]["limits"]] == ["email-sending", "leads-import", "api"]
    assert shell("limits", "api").startswith("LIMIT")


def test_a_send_from_a_file_is_paused_resumed_and_cancelled(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"subject": "Hi", "text": "Hello"}))
    recipients = write(tmp_path / "people.csv", 3)
    order = ["--template", "t.json", "--from", "news@example.com", "--start-at", LATER]
    [accepted] = shell.json("campaigns", "send", "later", recipients, *order)
    assert accepted["recipients"] == 3
    again = shell.call("campaigns", "send", "later", recipients, *order)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("mailgenius: ")
    states = [shell.json("campaigns", act, "later")[0]["state"] for act in ("pause", "resume")]
    states.append(shell.json("campaigns", "cancel", "later", "--yes")[0]["state"])
    assert states == ["paused", "running", "cancelled"]
    refused = shell.call("campaigns", "resume", "later")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    wrong = shell.call(
        "campaigns", "send", "wrong", recipients, "--subject", "Hi {{", "--text", "t.json", "--from", "a@b.com"
    )
    assert (wrong.returncode, "subject" in wrong.stderr) == (1, True)


def test_what_failed_is_listed_shown_and_sent_again(system: System, shell: Shell, tmp_path: Path) -> None:
    system.script(rules=[{"at": "rcpt", "match": "p1@example.com", "reply": "554 5.7.1 not from you"}])
    (tmp_path / "t.json").write_text(json.dumps({"subject": "Hi", "text": "Hello"}))
    recipients = write(tmp_path / "people.csv", 3)
    shell("campaigns", "send", "failing", recipients, "--template", "t.json", "--from", "news@example.com", "--wait")
    [letter] = shell.json("dlq", "list", "--state", "open")
    assert letter["code"] in shell("dlq", "list")
    assert "not from you" in shell("dlq", "show", letter["id"])
    system.script()
    [done] = shell.json("dlq", "replay", letter["id"])
    assert done["replayed"] == 1
    assert "1" in shell("dlq", "replay", "-", given=letter["id"])
    system.until(lambda: shell.json("campaigns", "show", "failing")[0]["counts"]["sent"] == 3)
    [retried] = shell.json("campaigns", "retry", "failing")
    assert retried["retried"] == 0
    assert shell.call("dlq", "show", "01a21039-4038-738c-bcdf-ed3c8547979c").returncode == 1


def test_keys_workers_and_lag(system: System, shell: Shell) -> None:
    secret = shell("keys", "create", "mine", "--for", USER).strip()
    own = Shell(shell.folder, shell.environment | {"MAILGENIUS_KEY": secret})
    assert own.call("progress").returncode == 0
    for words in (["keys", "list"], ["workers"], ["lag"]):
        assert own.call(*words).returncode == 1
    [key] = [one for one in shell.json("keys", "list", "--for", USER) if one["name"] == "mine" and not one["revokedAt"]]
    assert shell.call("keys", "revoke", key["id"]).returncode == 2
    shell("keys", "revoke", key["id"], "--yes")
    system.until(lambda: own.call("progress").returncode == 1)
    assert {one["kind"] for one in shell.json("workers") if one["state"] == "running"} == {"emails", "transactional"}
    assert "heartbeat" in shell("workers").lower()
    [lag] = shell.json("lag")
    assert {one["group"]: one["members"] for one in lag["groups"]}["worker-leads"] == 1
    assert len(shell("lag", "--partitions").splitlines()) == len(lag["partitions"]) + 1
    assert "leads.upstream" in shell("lag")
    shell("logout")
    assert shell.call("workers").returncode == 2


def test_ctrl_c_ends_it_with_its_own_code(system: System, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps({"subject": "Hi", "text": "Hello"}))
    recipients = write(tmp_path / "people.csv", 3)
    order = ["--template", "t.json", "--from", "news@example.com", "--start-at", LATER]
    [accepted] = shell.json("campaigns", "send", "watched", recipients, *order)
    following = subprocess.Popen(
        [*MAILGENIUS, "progress", accepted["sendId"], "--follow", "--json"],
        cwd=tmp_path,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert json.loads(following.stdout.readline())["id"] == accepted["sendId"]
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=30)
    assert (following.returncode, json.loads(said)["error"]["code"]) == (130, "interrupted")
    shell("campaigns", "cancel", "watched", "--yes")


def test_what_reads_only_the_first_lines_is_no_mistake(shell: Shell, tmp_path: Path) -> None:
    write(tmp_path / "many.csv", 5_000)
    shell("leads", "import", "many.csv", "--wait")
    piped = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {' '.join(MAILGENIUS)} leads search --limit 0 --json | head -1"],
        cwd=tmp_path,
        env=shell.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (piped.returncode, piped.stderr, len(piped.stdout.splitlines())) == (0, "", 1)
