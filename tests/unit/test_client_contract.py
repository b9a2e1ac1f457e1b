"""The client's types are those of the API's own description."""

import inspect
from typing import Any, get_args

import msgspec
import pytest

from api.app import create_app
from core.settings import load
from mailgenius import answers, orders
from schemas import states

OURS = {"ImportAccepted": {"userId"}, "SendAccepted": {"userId"}}
"""Fields that the client knows by itself."""


@pytest.fixture(scope="module")
def components() -> dict[str, Any]:
    app = create_app(load({"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}))
    found: dict[str, Any] = app.openapi()["components"]["schemas"]
    return found


def structs(module: Any, base: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
    return [kind for kind in kinds if issubclass(kind, base) and kind is not base]


def kind_of(schema: dict[str, Any], components: dict[str, Any]) -> str:
    """A type in a few words; an enum is the text it is, an object is its name."""
    if "anyOf" in schema:
        return "|".join(sorted({kind_of(part, components) for part in schema["anyOf"]}))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        referred = components.get(name, {})
        return kind_of(referred, components) if "enum" in referred else name
    if "enum" in schema or "const" in schema:
        return "string"
    match schema.get("type"):
        case "array":
            return f"[{kind_of(schema['items'], components)}]"
        case "object":
            of = schema.get("additionalProperties")
            return f"{{{kind_of(of, components) if isinstance(of, dict) and of else 'any'}}}"
        case "string":
            return str(schema.get("format", "string"))
        case None:
            return "any"
        case other:
            return str(other)


def properties(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, str]:
    return {name: kind_of(one, components) for name, one in schema["properties"].items()}


@pytest.mark.parametrize("kind", structs(answers, answers.Answer), ids=lambda kind: kind.__name__)
def test_an_answer_has_the_fields_that_the_api_gives(kind: type[msgspec.Struct], components: dict[str, Any]) -> None:
    _, own = msgspec.json.schema_components([kind])
    ours = {
        name: one
        for name, one in properties(own[kind.__name__], own).items()
        if name not in OURS.get(kind.__name__, ())
    }
    assert ours == properties(components[kind.__name__], components)


@pytest.mark.parametrize("kind", structs(orders, orders.Order), ids=lambda kind: kind.__name__)
def test_an_order_has_the_fields_that_the_api_takes(kind: type[msgspec.Struct], components: dict[str, Any]) -> None:
    name = kind.__name__
    wanted = components.get(f"{name}-Input", components.get(name))
    assert wanted is not None
    assert set(kind.__struct_encode_fields__) == set(wanted["properties"])
    needed = [field.encode_name for field in msgspec.structs.fields(kind) if field.required]
    assert needed == wanted["required"] if needed else "required" not in wanted


@pytest.mark.parametrize(
    ("chosen", "enum"),
    [
        (orders.OnConflict, states.OnConflict),
        (orders.OnDoubt, states.OnDoubt),
        (orders.LimitName, states.LimitName),
    ],
)
def test_what_may_be_chosen_is_what_the_api_knows(chosen: Any, enum: Any) -> None:
    assert set(get_args(chosen)) == {str(one) for one in enum}


def test_the_other_choices_are_those_of_the_models(components: dict[str, Any]) -> None:
    assert set(components["SuppressionOrder"]["properties"]["reason"]["enum"]) == set(
        get_args(orders.SuppressionReason)
    )
    assert set(components["SingleMails"]["properties"]["lane"]["enum"]) == set(get_args(orders.Lane))
