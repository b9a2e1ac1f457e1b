"""Previews and test mails over HTTP, and what a send stores of its template."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from core.settings import Settings
from schemas.messages import decode_email_task
from schemas.topics import EMAILS_TASKS, EMAILS_TRANSACTIONAL
from tests.integration.api_client import EMAILS, LEADS, OWNER, SEND, STRANGER, Api, running_api
from tests.integration.test_api_emails import published
from tests.orders import order

PREVIEW, TEST = "/api/queue/campaigns/preview", "/api/queue/campaigns/test"
SENDER = {"email": "news@shop.com", "name": "Shop"}
HTML = '<style>p{color:red}</style><p>Hello {{ name }} of {{ city }}</p><a href="{{ unsubscribe_url }}">Unsubscribe</a>'
TEMPLATE = {"subject": "Hi {{ name }}", "html": HTML}


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    client = await api.client_of(OWNER)
    for email, lead in {
        "ann@mail.com": {"name": "Ann <A>", "attributes": {"city": "Ulm"}},
        "ben@mail.com": {"name": "Ben"},
    }.items():
        assert (await client.put(f"{LEADS}/{email}", json=lead)).status_code == 201
    return client


async def previewed(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post(PREVIEW, json={"template": TEMPLATE, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_leads_are_rendered_with_their_own_attributes(client: httpx.AsyncClient) -> None:
    found = await previewed(client, leads=["Ann@mail.com", "ben@mail.com"])
    ann, ben = found["previews"]
    assert ann["subject"] == "Hi Ann <A>"
    assert '<p style="color:red">Hello Ann &lt;A&gt; of Ulm</p>' in ann["html"]
    assert ann["text"].startswith("Hello Ann <A> of Ulm")
    assert (ann["missing"], ann["error"]) == ([], None)
    assert ann["sizeBytes"] == sum(len(ann[part]) for part in ("subject", "html", "text"))
    assert (ben["missing"], ben["error"]) == (["city"], None)


async def test_recipients_are_those_of_a_send(client: httpx.AsyncClient) -> None:
    people = [{"email": "c@mail.com", "name": "Cid", "city": "Bonn", "variables": {"city": "Rome"}}, {"email": "no"}]
    cid, nobody = (await previewed(client, recipients=people))["previews"]
    assert "Hello Cid of Rome" in cid["text"]
    assert nobody["error"]
    assert nobody["html"] is None


async def test_a_strict_preview_names_what_is_missing_for_whom(client: httpx.AsyncClient) -> None:
    found = await previewed(client, leads=["ann@mail.com", "ben@mail.com"], missingVariables="strict")
    ann, ben = found["previews"]
    assert ann["error"] is None
    assert ben["error"] == "html: line 1: the variable city is missing"
    assert ben["html"] is None


async def test_css_stays_where_it_is_when_asked(client: httpx.AsyncClient) -> None:
    [ann] = (await previewed(client, leads=["ann@mail.com"], inlineCss=False))["previews"]
    assert "style=" not in ann["html"]


async def test_the_whole_mail_is_shown_on_demand(client: httpx.AsyncClient) -> None:
    [ann] = (await previewed(client, leads=["ann@mail.com"], sender=SENDER, mime=True))["previews"]
    assert "\r\nFrom: Shop <news@shop.com>\r\n" in ann["mime"]
    assert "multipart/alternative" in ann["mime"]
    answer = await client.post(PREVIEW, json={"template": TEMPLATE, "leads": ["ann@mail.com"], "mime": True})
    assert answer.status_code == 422


async def test_a_stranger_has_no_such_lead(api: Api, client: httpx.AsyncClient) -> None:
    stranger = await api.client_of(STRANGER)
    [ann] = (await previewed(stranger, leads=["ann@mail.com"]))["previews"]
    [nobody] = (await previewed(stranger, leads=["nobody@mail.com"]))["previews"]
    assert ann == nobody | {"email": "ann@mail.com"}
    answer = await stranger.post(
        TEST, json={"template": TEMPLATE, "sender": SENDER, "to": ["t@mail.com"], "lead": "ann@mail.com"}
    )
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "lead")


async def test_warnings_say_what_may_not_be_liked(client: httpx.AsyncClient) -> None:
    template = {"subject": "BUY NOW, REALLY!!", "html": "<p>x</p><img src='a.png'>"}
    found = await previewed(client, template=template, leads=["ann@mail.com"])
    codes = {one["code"] for one in found["warnings"]}
    assert codes == {"subject_capitals", "subject_marks", "no_unsubscribe", "image_without_alt"}
    assert (await previewed(client, leads=["ann@mail.com"]))["warnings"] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"leads": ["a@mail.com"] * 26}, ""),
        ({"leads": ["a@mail.com"], "template": {"subject": "x", "html": "{{ x"}}, "template.html"),
        (
            {"leads": ["a@mail.com"], "template": {"subject": "x", "text": "{% for i in range(10**9) %}{% endfor %}"}},
            "template.text",
        ),
        ({"leads": ["a@mail.com"], "missingVariables": "perhaps"}, "missingVariables"),
    ],
)
async def test_what_a_send_would_be_refused_for_is_refused(client: httpx.AsyncClient, body: Any, field: str) -> None:
    answer = await client.post(PREVIEW, json={"template": TEMPLATE, **body})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"].get("field", "") == field


async def test_a_test_mail_is_the_leads_and_goes_to_the_tester(client: httpx.AsyncClient, settings: Settings) -> None:
    body = {"template": TEMPLATE, "sender": SENDER, "to": ["t@mail.com", "u@mail.com"], "lead": "ann@mail.com"}
    answer = await client.post(TEST, json=body)
    assert answer.status_code == 202, answer.text
    assert len(answer.json()["ids"]) == 2
    tasks = [task for _, task in await published(settings, EMAILS_TRANSACTIONAL)]
    assert [task.email for task in tasks] == ["t@mail.com", "u@mail.com"]
    assert tasks[0].template.subject == "{{ subject }}"
    assert tasks[0].variables["subject"] == "[Test] Hi Ann <A>"
    assert '<p style="color:red">Hello Ann &lt;A&gt; of Ulm</p>' in tasks[0].variables["html"]
    assert tasks[0].variables["text"].startswith("Hello Ann <A> of Ulm")


async def test_a_test_mail_that_would_fail_is_refused(client: httpx.AsyncClient, settings: Settings) -> None:
    body = {"template": TEMPLATE, "sender": SENDER, "to": ["t@mail.com"], "lead": "ben@mail.com"}
    strict = await client.post(TEST, json=body | {"missingVariables": "strict"})
    assert (strict.status_code, strict.json()["error"]["field"]) == (422, "template")
    nobody = await client.post(TEST, json=body | {"to": ["nobody"]})
    assert (nobody.status_code, nobody.json()["error"]["field"]) == (422, "to[0]")
    many = await client.post(TEST, json=body | {"to": [f"t{number}@mail.com" for number in range(11)]})
    assert (many.status_code, many.json()["error"]["field"]) == (422, "to")
    assert await published(settings, EMAILS_TRANSACTIONAL) == []


async def test_the_same_test_again_has_the_same_ids(client: httpx.AsyncClient) -> None:
    body = {"template": TEMPLATE, "sender": SENDER, "to": ["t@mail.com"]}
    first, again = [await client.post(TEST, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert first.json() == again.json()


async def stored_template(api: Api) -> dict[str, Any]:
    async with api.resources.database.connection() as connection:
        found: dict[str, Any] = json.loads(await connection.fetchval("SELECT template FROM campaign_sends"))
    return found


async def test_a_send_stores_the_template_as_it_is_sent(api: Api, client: httpx.AsyncClient) -> None:
    answer = await client.post(SEND, json=order(template=TEMPLATE, missingVariables="strict"))
    assert answer.status_code == 202, answer.text
    stored = await stored_template(api)
    assert '<p style="color:red">Hello {{ name }}' in stored["html"]
    assert stored["text"] == "Hello {{ name }} of {{ city }}\n\nUnsubscribe ({{ unsubscribe_url }})\n"
    assert stored["missingVariables"] == "strict"


async def test_a_send_can_keep_its_html_and_has_its_own_text(api: Api, client: httpx.AsyncClient) -> None:
    own = TEMPLATE | {"text": "Own"}
    assert (await client.post(SEND, json=order(template=own, inlineCss=False))).status_code == 202
    stored = await stored_template(api)
    assert (stored["html"], stored["text"], stored["missingVariables"]) == (HTML, "Own", "lenient")


async def test_single_mails_have_their_parts_made_too(client: httpx.AsyncClient, settings: Settings) -> None:
    body = {"template": TEMPLATE, "sender": SENDER, "missingVariables": "strict", "emails": [{"email": "a@mail.com"}]}
    assert (await client.post(EMAILS, json=body)).status_code == 202
    [(_, task)] = await published(settings, EMAILS_TASKS)
    assert '<p style="color:red">' in (task.template.html or "")
    assert (task.template.text or "").startswith("Hello {{ name }}")
    assert task.template.missing_variables == "strict"
    assert (
        decode_email_task(
            b'{"userId":"u","email":"a","template":{"subject":"x"},"sender":{"email":"a"}}'
        ).template.missing_variables
        == "lenient"
    )
