"""What is published of the contract is what the code says, and what version 1 was can still be read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import TypeAdapter, ValidationError

from schemas import messages
from schemas.http import base as http
from schemas.messages import KINDS, VERSION, ProgressBlock, UpstreamLead
from schemas.publish import documents, main
from schemas.topics import CATALOGUE, EVENTS

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "tests" / "contracts"


def test_the_published_files_are_what_the_code_says() -> None:
    assert main(["--check"]) == 0, "python -m schemas.publish"


def test_a_check_finds_what_was_changed_is_missing_or_is_left_over(tmp_path: Path) -> None:
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "Old.json").write_text("{}")
    assert main(["--check"], tmp_path) == 1
    assert main([], tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(documents())
    (tmp_path / "UpstreamLead.json").write_text("{}")
    assert main(["--check"], tmp_path) == 1


def test_every_message_of_a_topic_is_published() -> None:
    named = {name for topic in CATALOGUE for name in (topic.message, *topic.also)} - {"the original bytes"}
    assert named == {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("name", documents())
def test_every_reference_leads_somewhere(name: str) -> None:
    document = json.loads(documents()[name])
    for reference in _references(document):
        at: Any = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


def test_asyncapi_says_which_topic_others_write() -> None:
    document = json.loads(documents()["asyncapi.json"])
    receives = [name for name, operation in document["operations"].items() if operation["action"] == "receive"]
    assert receives == ["leads-upstream", "emails-tasks", "emails-transactional"]
    others_read = [topic.name.replace(".", "-") for topic in EVENTS]
    assert [
        name for name, channel in document["channels"].items() if "x-internal" not in channel
    ] == receives + others_read
    assert {channel["address"] for channel in document["channels"].values()} == {topic.name for topic in CATALOGUE}


def _references(document: Any) -> Iterator[str]:
    if isinstance(document, dict):
        if isinstance(document.get("$ref"), str):
            yield document["$ref"]
        for value in document.values():
            yield from _references(value)
    elif isinstance(document, list):
        for value in document:
            yield from _references(value)


# Stored messages


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_version_1_was_can_be_read(kind: type[msgspec.Struct]) -> None:
    """These files never change. When a version 2 comes, they are read as before, or by an own decoder."""
    text = (EXAMPLES / "v1" / f"{kind.__name__}.json").read_bytes()
    stored = json.loads(text)
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    decode = getattr(messages, f"decode_{name}", None) or msgspec.json.Decoder(ProgressBlock).decode
    message = decode(text)
    assert isinstance(message, kind)
    known = json.loads(msgspec.json.encode(message))
    assert set(stored) - set(known) <= {"sourceSystem"}
    # A field that came later has its default.
    assert {field: known[field] for field in stored if field in known} == {
        field: stored[field] for field in stored if field in known
    }


def test_every_version_has_a_message_of_each_kind() -> None:
    for version in range(1, VERSION + 1):
        stored = {path.stem for path in (EXAMPLES / f"v{version}").glob("*.json")}
        assert stored >= {kind.__name__ for kind in KINDS}


# What both contracts say


@pytest.mark.parametrize("text", ["", "a", "a" * 64, "a" * 65, "a\n", "a\x00", "ä ö", "\x85", "a\tb"])
def test_a_tag_is_the_same_in_messages_and_over_http(text: str) -> None:
    assert _reads(messages.Tag, text) == _is_valid(http.Tag, text)


@pytest.mark.parametrize("text", ["", "a", "a" * 200, "a" * 201, "a\n", "a\x00"])
def test_a_user_id_is_the_same_upstream_and_over_http(text: str) -> None:
    value = json.dumps({"userId": text, "email": "a@mail.com"})
    assert _reads(UpstreamLead, json.loads(value)) == _is_valid(http.IdText, text)


def test_there_are_as_many_tags_in_both() -> None:
    assert messages.TAGS_MAX == http.TAGS_MAX


def _reads(kind: Any, value: object) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _is_valid(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True
