"""Writes the contract down for those who write or read our topics: a JSON Schema a message, and AsyncAPI for all topics.

python -m schemas.publish [--check]
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from schemas import headers
from schemas.messages import KINDS, VERSION, EmailTask, LeadEvents, MailEvents, MailOutcomes, UpstreamLead
from schemas.topics import CATALOGUE, DLQS, EMAILS_TASKS, EMAILS_TRANSACTIONAL, EVENTS, LEADS_UPSTREAM, Topic

FOLDER: Final = Path(__file__).parents[1] / "docs" / "contracts"
ASYNCAPI: Final = "asyncapi.json"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
WRITTEN_BY_OTHERS: Final = frozenset({LEADS_UPSTREAM, EMAILS_TASKS, EMAILS_TRANSACTIONAL})
"""All other topics are written by us alone."""

Document = dict[str, Any]


def documents() -> dict[str, str]:
    """The text of every file of the contract, by its name."""
    found = {f"{kind.__name__}.json": message_schema(kind) for kind in KINDS} | {ASYNCAPI: asyncapi()}
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in found.items()}


def message_schema(kind: type[Struct]) -> Document:
    """Of one message, with all it refers to."""
    _, components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    message = _known_version(components.pop(kind.__name__))
    defs = {"$defs": components} if components else {}
    return {"$schema": DIALECT, "$id": f"{kind.__name__}.v{VERSION}.json"} | message | defs


def asyncapi() -> Document:
    """All topics without a deployment's prefix, from where we stand: `receive` is what others may write, `send` what they may
    read, and what is ours alone has `x-internal`.
    """
    schemas = {kind.__name__: message_schema(kind) for kind in KINDS}
    for schema in schemas.values():
        del schema["$schema"], schema["$id"]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Mail marketing queue",
            "version": str(VERSION),
            "description": "Kafka topics. KAFKA_TOPIC_PREFIX of a deployment stands before every address.",
        },
        "defaultContentType": "application/json",
        "channels": {_id(topic): _channel(topic) for topic in CATALOGUE},
        "operations": {_id(topic): _operation(topic) for topic in CATALOGUE},
        "components": {
            "messages": {kind.__name__: _message(kind) for kind in KINDS} | {"DeadLetter": _dead_letter()},
            "schemas": _referring_to_components(schemas),
        },
    }


def _known_version(message: Document) -> Document:
    properties = message["properties"] | {"v": {"const": VERSION, "default": VERSION}}
    # Docstrings are wrapped; paragraphs are not.
    description = re.sub(r"(?<!\n)\n(?!\n)", " ", message["description"])
    return message | {"description": description, "properties": properties}


def _id(topic: Topic) -> str:
    return topic.name.replace(".", "-")


def _message_name(topic: Topic) -> str:
    return "DeadLetter" if topic in DLQS else topic.message


def _channel(topic: Topic) -> Document:
    names = (_message_name(topic), *topic.also)
    settings: Document = {"cleanup.policy": ["compact" if topic.compacted else "delete"]}
    if not topic.compacted:
        settings["retention.ms"] = int(topic.retention.total_seconds() * 1000)
    settings["max.message.bytes"] = topic.max_bytes
    partitions = {} if topic.partitions is None else {"partitions": topic.partitions}
    return {
        "address": topic.name,
        "description": f"Key: {topic.key}. Read by: {topic.read_by}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {"kafka": {**partitions, "topicConfiguration": settings, "bindingVersion": "0.5.0"}},
    } | ({} if topic in WRITTEN_BY_OTHERS or topic in EVENTS else {"x-internal": True})


def _operation(topic: Topic) -> Document:
    also = () if topic in WRITTEN_BY_OTHERS else topic.also  # what we put among theirs they do not write
    return {
        "action": "receive" if topic in WRITTEN_BY_OTHERS else "send",
        "channel": {"$ref": f"#/channels/{_id(topic)}"},
        "messages": [{"$ref": f"#/channels/{_id(topic)}/messages/{name}"} for name in (_message_name(topic), *also)],
    }


def _message(kind: type[Struct]) -> Document:
    key = {"bindings": {"kafka": {"key": {"type": "string", "description": "The user id."}, "bindingVersion": "0.5.0"}}}
    return {
        "name": kind.__name__,
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
    } | (key if kind in (UpstreamLead, EmailTask, MailOutcomes, MailEvents, LeadEvents) else {})


def _dead_letter() -> Document:
    names = sorted(value for name, value in vars(headers).items() if name.isupper() and isinstance(value, str))
    return {
        "name": "DeadLetter",
        "description": "The original key and bytes, whatever they are, and why in headers.",
        "contentType": "application/octet-stream",
        "headers": {"type": "object", "properties": {name: {"type": "string"} for name in names}},
    }


def _referring_to_components(schemas: Mapping[str, Document]) -> Document:
    """What messages refer to becomes a component of its own: AsyncAPI resolves references from the document's root."""
    parts: Document = {}
    for name, schema in schemas.items():
        parts |= schema.pop("$defs", {})
        parts[name] = schema
    text = json.dumps(dict(sorted(parts.items()))).replace("#/$defs/", "#/components/schemas/")
    moved: Document = json.loads(text)
    return moved


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    parser = argparse.ArgumentParser(prog="python -m schemas.publish", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; 1 when the files are not what the code says"
    )
    check = parser.parse_args(arguments).check
    wanted = documents()
    there = {path.name: path.read_text() for path in folder.glob("*.json")}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if check:
        for name in stale:
            print(
                f"docs/contracts/{name} is not what schemas/ says; python -m schemas.publish writes it", file=sys.stderr
            )
        return 1 if stale else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in wanted:
            (folder / name).write_text(wanted[name])
        else:
            (folder / name).unlink()
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
