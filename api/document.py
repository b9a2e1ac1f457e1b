"""The OpenAPI document, with the bodies that routes read by themselves."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from schemas.http.dead_letters import ReplayOrder
from schemas.http.dkim import DkimKeyOrder
from schemas.http.feedback import FeedbackEvent, RotateOrder, SourceOrder
from schemas.http.leads import ErasureRequest, LeadBody, LeadPatch, LeadTagging
from schemas.http.mails import SingleMails
from schemas.http.previews import PreviewRequest, TestRequest
from schemas.http.relays import RelayOrder, RelayPatch, RelayTestOrder
from schemas.http.sends import RetryOrder, SendRequest
from schemas.http.suppressions import SuppressionOrder
from schemas.http.webhooks import WebhookOrder, WebhookPatch, WebhookRotation

REFERENCE = "#/components/schemas/{model}"
READ_BY_ROUTES = (
    SendRequest,
    PreviewRequest,
    TestRequest,
    RetryOrder,
    LeadBody,
    LeadPatch,
    LeadTagging,
    ErasureRequest,
    SuppressionOrder,
    ReplayOrder,
    SingleMails,
    DkimKeyOrder,
    RelayOrder,
    RelayPatch,
    RelayTestOrder,
    SourceOrder,
    RotateOrder,
    FeedbackEvent,
    WebhookOrder,
    WebhookPatch,
    WebhookRotation,
)


class Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for model in READ_BY_ROUTES:
            schema = model.model_json_schema(ref_template=REFERENCE)
            parts = schema.pop("$defs", {})
            document["components"]["schemas"].update({**parts, model.__name__: schema})
        return document


def component(model: type[BaseModel]) -> dict[str, str]:
    """Where the document has the schema of one of READ_BY_ROUTES."""
    return {"$ref": REFERENCE.format(model=model.__name__)}


def json_body(model: type[BaseModel], *, required: bool = True) -> dict[str, object]:
    """`openapi_extra` of a route that reads one of READ_BY_ROUTES itself."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": component(model)}}}}
