"""The OpenAPI document holds together."""

from collections.abc import Iterator
from typing import Any

from api.app import create_app
from core.settings import Settings


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from _references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _references(inner)


def test_every_reference_leads_somewhere() -> None:
    document = create_app(Settings()).openapi()
    references = set(_references(document))
    assert "#/components/schemas/SendRequest" in references
    for reference in references:
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_every_path_but_the_probes_asks_for_a_key() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    keyless = {path for path, methods in paths.items() if any("security" not in one for one in methods.values())}
    assert keyless == {"/healthz", "/readyz"}


def test_names_outside_are_camel_case() -> None:
    schemas = create_app(Settings()).openapi()["components"]["schemas"]
    ours = {name: schema for name, schema in schemas.items() if "Validation" not in name}
    assert not [field for schema in ours.values() for field in schema.get("properties", {}) if "_" in field]
