"""The CLI without an API: its examples, its documents, what it stores, and what it exits with."""

import io
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

from devstack.cli_reference import BEGIN, DOCUMENT, commands, reference
from mailgenius import MailGenius, Retries
from mailgenius.cli import command as command_module
from mailgenius.cli import profile
from mailgenius.cli.command import Command
from mailgenius.cli.main import AWAY, DONE, INTERRUPTED, NO, USAGE, cli, main
from mailgenius.cli.output import Output, seconds

ROOT = Path(__file__).parents[2]
COMMANDS = list(commands())
EXAMPLES = [example for _, one in COMMANDS if isinstance(one, Command) for example in one.examples]
Answers = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of its own, with the files that examples name."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    for name in (profile.URL, profile.KEY, profile.USER):
        monkeypatch.delenv(name, raising=False)
    for name in ("leads.csv", "leads.csv.gz", "people.csv", "hi.txt", "spring.json"):
        (tmp_path / name).write_text("email\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], list[httpx.Request]]:
    """An API that answers so; what it was asked."""
    monkeypatch.setenv(profile.URL, "https://queue.example")
    monkeypatch.setenv(profile.KEY, "mg_key")

    def answer(answers: Answers) -> list[httpx.Request]:
        asked: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return answers(request)

        made = partial(MailGenius, transport=httpx.MockTransport(handle), retries=Retries(attempts=1))
        monkeypatch.setattr(command_module, "MailGenius", made)
        return asked

    return answer


def refusal(status: int, code: str, message: str, field: str | None = None) -> Answers:
    return lambda _: httpx.Response(status, json={"error": {"code": code, "message": message, "field": field}})


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_command_line(example: str) -> None:
    """Of a pipe, the part that is ours."""
    for part in example.split(" | "):
        words = shlex.split(part.partition(" < ")[0])
        if words[0] != "mailgenius":
            continue
        group: click.Command = cli
        arguments = words[1:]
        while isinstance(group, click.Group):
            group = group.commands[arguments.pop(0)]
        assert group.make_context(words[1], arguments, **cli.context_settings).command is group


@pytest.mark.parametrize(("name", "one"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_says_what_it_does(name: str, one: click.Command) -> None:
    assert one.help
    assert name == "mailgenius completion" or (isinstance(one, Command) and one.examples)
    for parameter in one.params:
        if isinstance(parameter, click.Option) and parameter.metavar is None and parameter.type is click.STRING:
            assert parameter.help, f"{name} {parameter.opts[0]}"


def test_the_document_has_the_help_of_every_command() -> None:
    """`python -m devstack.cli_reference` writes it anew."""
    assert DOCUMENT.read_text().partition(BEGIN)[2].strip() == reference().strip()


def test_the_documents_examples_are_command_lines() -> None:
    lines = [
        line[2:] for line in DOCUMENT.read_text().partition(BEGIN)[0].splitlines() if line.startswith("$ mailgenius")
    ]
    assert len(lines) > 3
    for line in lines:
        test_an_example_is_a_command_line(line)


def test_what_is_stored_is_for_its_owner_alone(home: Path) -> None:
    os.umask(0)
    where = profile.write(profile.Profile("https://queue.example", "mg_key", "acme"))
    assert where == home / "xdg" / "mailgenius" / "config.json"
    assert (stat.S_IMODE(where.stat().st_mode), stat.S_IMODE(where.parent.stat().st_mode)) == (0o600, 0o700)
    assert profile.read() == profile.Profile("https://queue.example", "mg_key", "acme")
    assert [path.name for path in where.parent.iterdir()] == ["config.json"]
    assert (profile.remove(), profile.remove()) == (True, False)


def test_the_environment_goes_before_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    profile.write(profile.Profile("https://queue.example", "mg_key", "acme"))
    monkeypatch.setenv(profile.KEY, "mg_other")
    monkeypatch.setenv(profile.USER, "other")
    assert profile.read() == profile.Profile("https://queue.example", "mg_other", "other")


def test_a_stored_key_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    profile.write(profile.Profile("https://queue.example", "mg_key"))
    monkeypatch.setenv(profile.URL, "https://elsewhere.example")
    assert main(["limits"]) == USAGE
    assert "is not where the stored key is for" in capsys.readouterr().err


def test_without_an_address_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["limits"]) == USAGE
    assert "mailgenius login" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["leads"],
        ["leads", "import", "none.csv"],
        ["leads", "import", "leads.csv", "--on-conflict", "x"],
        ["leads", "import", "leads.csv", "--rejected", "r.csv"],
        ["leads", "search", "--since", "monday"],
        ["campaigns", "send", "x", "--from", "a@b.c", "--all"],
        ["campaigns", "send", "x", "--from", "a@b.c", "--template", "hi.txt"],
        ["campaigns", "send", "x", "people.csv", "--all", "--from", "a@b.c", "--template", "spring.json"],
        ["campaigns", "show"],
        ["campaigns", "cancel", "x"],
        ["mails", "find"],
        ["keys", "create", "x"],
        ["dlq", "show", "x"],
    ],
)
def test_what_is_called_wrongly_asks_nothing(
    arguments: list[str], answering: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    asked = answering(refusal(500, "internal", "never"))
    assert main(arguments) == USAGE
    assert asked == []
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(("mailgenius: ", "Usage: "))


@pytest.mark.parametrize(
    ("status", "code", "field", "exits", "says"),
    [
        (422, "invalid", "emailPrefix", NO, "mailgenius: emailPrefix: too short\n"),
        (422, "missing", "userId", NO, "mailgenius: userId: too short (--user)\n"),
        (404, "not_found", None, NO, "mailgenius: too short\n"),
        (429, "too_many", None, NO, "mailgenius: too short\n"),
        (503, "unavailable", None, AWAY, "mailgenius: too short\n"),
    ],
)
def test_a_no_is_one_line_with_field_and_reason(
    answering: Any, capsys: pytest.CaptureFixture[str], status: int, code: str, field: str, exits: int, says: str
) -> None:
    answering(refusal(status, code, "too short", field))
    assert main(["leads", "search"]) == exits
    assert capsys.readouterr() == ("", says)
    assert main(["leads", "search", "--json"]) == exits
    told = json.loads(capsys.readouterr().err)["error"]
    assert (told["code"], told["message"], told.get("field")) == (code, "too short", field)


def test_who_cannot_be_reached_is_named(answering: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def lost(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    answering(lost)
    assert main(["progress"]) == AWAY
    assert capsys.readouterr().err == "mailgenius: https://queue.example cannot be reached: ConnectError: no route\n"
    assert main(["leads", "import", "leads.csv"]) == AWAY
    assert "--idempotency-key " in capsys.readouterr().err
    assert main(["campaigns", "pause", "spring"]) == AWAY
    assert "--idempotency-key " not in capsys.readouterr().err


def test_an_interrupt_has_its_code(answering: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    answering(interrupted)
    assert main(["progress"]) == INTERRUPTED
    assert capsys.readouterr().err.strip() == "mailgenius: interrupted"


def test_a_limit_of_lines_is_told(answering: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lead = {
        "name": "",
        "attributes": {},
        "tags": [],
        "createdAt": "2026-05-01T00:00:00Z",
        "updatedAt": "2026-05-01T00:00:00Z",
    }
    leads = [{"email": f"p{number}@mail.com", **lead} for number in range(3)]
    asked = answering(lambda _: httpx.Response(200, json={"leads": leads, "next": None}))
    assert main(["leads", "search", "--limit", "2", "--user", "acme", "--tag", "a", "--tag", "b"]) == DONE
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == ["EMAIL", "p0@mail.com", "p1@mail.com"]
    assert told.err == "there are more than 2: --limit 0 shows all\n"
    params = sorted(asked[0].url.params.multi_items())
    assert params == [("limit", "500"), ("tags", "a"), ("tags", "b"), ("userId", "acme")]
    assert main(["leads", "search", "--limit", "0", "--json"]) == DONE
    told = capsys.readouterr()
    assert [json.loads(line)["email"] for line in told.out.splitlines()] == [one["email"] for one in leads]
    assert told.err == ""


def test_what_others_have_written_does_not_drive_the_terminal(
    answering: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "[red]A\x1b]0;title\x07\x9b31m\u202eB\nC"
    lead = {"email": "p@mail.com", "name": name, "attributes": {"\x1b[2J": "x"}, "tags": ["\x1b[A"]}
    lead |= {"createdAt": "2026-05-01T00:00:00Z", "updatedAt": "2026-05-01T00:00:00Z"}
    answering(lambda _: httpx.Response(200, json={"leads": [lead], "next": None}))
    assert main(["leads", "search"]) == DONE
    shown = capsys.readouterr().out
    assert "[red]A\N{REPLACEMENT CHARACTER}]0;title" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert len(shown.splitlines()) == 2
    answering(refusal(404, "not_found", "no\x1b[2J\nsuch"))
    assert main(["leads", "search"]) == NO
    assert capsys.readouterr().err == "mailgenius: no\N{REPLACEMENT CHARACTER}[2J such\n"


def test_what_is_shared_names_no_user(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(profile.USER, "acme")
    asked = answering(lambda _: httpx.Response(200, json={"deadLetters": [], "next": None}))
    assert main(["dlq", "list", "--shared"]) == DONE
    assert main(["dlq", "list"]) == DONE
    assert [request.url.params.get("userId") for request in asked] == [None, "acme"]


def test_a_key_is_all_that_goes_to_standard_output(answering: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = {"id": "01a21039-4038-738c-bcdf-ed3c8547979c", "name": "n", "scope": "user", "userId": "acme"}
    made |= {"createdAt": "2026-05-01T00:00:00Z", "expiresAt": None, "revokedAt": None, "secret": "mg_secret"}
    asked = answering(lambda _: httpx.Response(201, json=made))
    assert main(["keys", "create", "n", "--for", "acme", "--expires", "2027-01-01T00:00+02:00"]) == DONE
    assert capsys.readouterr().out == "mg_secret\n"
    sent = json.loads(asked[0].content)
    assert sent == {"name": "n", "scope": "user", "userId": "acme", "expiresAt": sent["expiresAt"]}


def test_a_shell_completes_commands_and_choices() -> None:
    def completed(words: str) -> list[str]:
        number = len(words.split(" ")) - 1
        environment = {
            **os.environ,
            "_MAILGENIUS_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": f"{number}",
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "mailgenius"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("mailgenius cam") == ["campaigns"]
    assert completed("mailgenius campaigns re") == ["resume", "retry"]
    assert completed("mailgenius limits e") == ["email-sending"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_completion_names_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == DONE
    assert f"_MAILGENIUS_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "-"), (0.04, "0.0 s"), (99.94, "99.9 s"), (123, "2 min 3 s"), (3600, "1 h"), (90_061, "1 d 1 h")],
)
def test_seconds_are_told_as_people_tell_them(value: float | None, said: str) -> None:
    assert seconds(value) == said


def test_json_is_one_line_an_object(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Output(as_json=True).json({"a": "x\ny"})
    assert capfdbinary.readouterr().out == b'{"a":"x\\ny"}\n'
