"""DKIM signatures, verified by dkimpy; keys and their records."""

import base64
from collections.abc import Sequence
from functools import cache
from typing import Any
from uuid import UUID

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from core.dkim import (
    KeyPair,
    Record,
    check_selector,
    domain_and_parents,
    load_private,
    new_pair,
    new_selector,
    read_pem,
    record_of,
    signing_domain,
)
from core.errors import InvalidInput
from core.templates import compile_template
from mailer.dkim import OVERSIGNED, Signer, SigningKey, from_domain
from mailer.mime import Sender, compile_mail
from schemas.states import DkimAlgorithm, DkimCanonicalization
from tests.dkim import Dns, verify_all

DOMAIN = "shop.example"
NOW = 1_764_000_000
RSA, ED25519 = DkimAlgorithm.RSA, DkimAlgorithm.ED25519
RELAXED, SIMPLE_BODY = DkimCanonicalization.RELAXED, DkimCanonicalization.SIMPLE_BODY
MAIL = (
    b'From: News <news@shop.example>\r\nTo: "A, B" <a@b.example>\r\nSubject: A long subject\r\n that is\tfolded \r\n'
    b"Date: Mon, 24 Nov 2025 10:00:00 +0000\r\nMessage-ID: <1@shop.example>\r\nMIME-Version: 1.0\r\n"
    b"List-Unsubscribe: <https://shop.example/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\n'
    b"Hello  there, \t\r\n\r\n.\r\n..\r\nFrom here\r\n \r\n\r\n"
)


@cache
def _pair(algorithm: DkimAlgorithm) -> KeyPair:
    return new_pair(algorithm)


def _key(algorithm: DkimAlgorithm, kind: DkimCanonicalization, domain: str = DOMAIN) -> SigningKey:
    return SigningKey(domain, f"{algorithm}1", algorithm, kind, load_private(_pair(algorithm).private))


def _dns(domain: str = DOMAIN) -> Dns:
    return Dns([record_of(domain, f"{one}1", one, _pair(one).public) for one in (RSA, ED25519)])


def _signed(content: bytes, keys: Sequence[SigningKey] | None = None, **options: Any) -> bytes:
    keys = keys or [_key(RSA, RELAXED), _key(ED25519, RELAXED)]
    return Signer(keys, **options).headers(content, NOW) + content


BOTH = [(algorithm, kind) for algorithm in (RSA, ED25519) for kind in (RELAXED, SIMPLE_BODY)]

_text = st.text(st.sampled_from(" \tab.=é\u20ac"), max_size=30)
_line = st.one_of(_text, st.just(""), st.just("x" * 990), st.just(" "), st.just("\t "), st.just("."))
_bodies = st.lists(_line, max_size=8).map(lambda lines: "".join(f"{line}\r\n" for line in lines).encode())
_word = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc", "Zl", "Zp"]),
    min_size=1,
    max_size=12,
)
_gap = st.sampled_from([" ", "  ", "\t", " \t ", "\r\n ", "\r\n\t", " \r\n  "])


@st.composite
def _value(draw: st.DrawFn) -> str:
    """An unstructured value, folded anyhow."""
    words = draw(st.lists(_word, min_size=1, max_size=8))
    text = draw(st.sampled_from(["", " ", "  ", "\t"])) + words[0]
    return text + "".join(draw(_gap) + word for word in words[1:]) + draw(st.sampled_from(["", " ", "\t"]))


@st.composite
def _contents(draw: st.DrawFn) -> bytes:
    heads = [f"{draw(st.sampled_from(['From', 'FROM', 'from']))}: x@{DOMAIN}"]
    names = draw(
        st.lists(st.sampled_from(["Subject", "subject", "To", "X-Other", "List-Id", "Sender", "Date"]), max_size=7)
    )
    heads += [f"{name}:{draw(_value())}" for name in names]
    return "\r\n".join(draw(st.permutations(heads))).encode() + b"\r\n\r\n" + draw(_bodies)


@given(content=_contents(), which=st.sampled_from(BOTH))
@settings(deadline=None, max_examples=300)
def test_dkimpy_verifies_any_mail(content: bytes, which: tuple[DkimAlgorithm, DkimCanonicalization]) -> None:
    assert verify_all(_signed(content, [_key(*which)]), _dns()) == [True]


@given(html=st.text(max_size=200), text=st.text(max_size=200), subject=st.text(max_size=100), name=st.text(max_size=60))
@settings(deadline=None, max_examples=100)
def test_dkimpy_verifies_what_is_built_of_a_template(html: str, text: str, subject: str, name: str) -> None:
    template = compile_template("{{ subject }}", "<p>{{ html }}</p>", "{{ text }}")
    mail = compile_mail(UUID(int=7), template, Sender(f"news@{DOMAIN}", "News é"))
    variables = {"html": html, "text": text, "subject": subject}
    envelope = mail.build(0, "é@müller.example", name, variables, None)
    head = Signer([_key(RSA, RELAXED), _key(ED25519, SIMPLE_BODY)]).headers(envelope.content, NOW, envelope.tail)
    assert verify_all(head + envelope.content + envelope.tail, _dns()) == [True, True]


@pytest.mark.parametrize("tail", [b"\r\n", b" \r\nmore\t \r\n\r\n", b"=20\r\n"])
@pytest.mark.parametrize("end", [b"\r\n", b" \t", b"x"])
def test_the_tail_that_all_mails_share_is_signed_with_them(end: bytes, tail: bytes) -> None:
    content = b"From: x@shop.example\r\n\r\nHello" + end
    head = Signer([_key(RSA, RELAXED), _key(ED25519, SIMPLE_BODY)]).headers(content, NOW, tail)
    assert verify_all(head + content + tail, _dns()) == [True, True]
    assert verify_all(head + content + tail + b"more\r\n", _dns()) == [False, False]


@pytest.mark.parametrize(("algorithm", "kind"), BOTH)
@pytest.mark.parametrize("body", [b"", b"\r\n", b" \r\n", b"\r\n\r\n", b"no end", b"end \t\r\n", b"a\r\n\r\n \t\r\n"])
def test_bodies_at_the_edge_are_verified(algorithm: DkimAlgorithm, kind: DkimCanonicalization, body: bytes) -> None:
    content = b"From: x@shop.example\r\n\r\n" + body
    assert verify_all(_signed(content, [_key(algorithm, kind)]), _dns()) == [True]


def test_each_key_signs_and_rsa_comes_first() -> None:
    signed = _signed(MAIL, [_key(ED25519, SIMPLE_BODY), _key(RSA, RELAXED)])
    assert verify_all(signed, _dns()) == [True, True]
    heads = signed.partition(MAIL)[0].replace(b"\r\n ", b" ").splitlines()
    assert [head.split(b"; ")[1:3] for head in heads] == [
        [b"a=rsa-sha256", b"c=relaxed/relaxed"],
        [b"a=ed25519-sha256", b"c=relaxed/simple"],
    ]
    assert max(map(len, signed.partition(MAIL)[0].splitlines())) <= 78


def test_every_header_that_counts_is_covered_and_those_readers_see_once_more() -> None:
    header = _signed(MAIL, [_key(RSA, RELAXED)]).partition(MAIL)[0].replace(b"\r\n ", b" ")
    names = header.partition(b" h=")[2].partition(b";")[0].replace(b" ", b"").decode().split(":")
    there = {
        line.partition(b":")[0].decode() for line in MAIL.partition(b"\r\n\r\n")[0].splitlines() if line[:1] != b" "
    }
    assert there <= set(names)
    assert {name: names.count(name) for name in OVERSIGNED} == {name: 1 + (name in there) for name in OVERSIGNED}


@pytest.mark.parametrize(
    "field", ["From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post"]
)
def test_a_signed_header_that_is_changed_or_taken_away_is_noticed(field: str) -> None:
    signed = _signed(MAIL)
    start = signed.index(f"\r\n{field}:".encode()) + 2
    colon = start + len(field) + 1
    assert verify_all(signed[:colon] + b" x" + signed[colon:], _dns()) == [False, False]
    end = signed.index(b"\r\n", colon)
    while signed[end + 2 : end + 3] == b" ":
        end = signed.index(b"\r\n", end + 2)
    assert verify_all(signed[:start] + signed[end + 2 :], _dns()) == [False, False]


def test_a_body_that_is_changed_is_noticed() -> None:
    assert verify_all(_signed(MAIL).replace(b"Hello", b"Hallo"), _dns()) == [False, False]


@pytest.mark.parametrize("field", OVERSIGNED)
def test_a_second_header_of_what_readers_see_is_noticed(field: str) -> None:
    signed = _signed(MAIL)
    added = f"{field}: boss@shop.example\r\n".encode()
    head, _, body = signed.partition(b"\r\n\r\n")
    for wrong in (added + signed, head + b"\r\n" + added + b"\r\n" + body):
        assert verify_all(wrong, _dns()) == [False, False]


def test_what_relaxed_allows_on_the_way_does_no_harm() -> None:
    signed = _signed(MAIL).replace(b"there, \t\r\n", b"there,\r\n").replace(b"Hello  ", b"Hello ")
    signed = signed.replace(b"Subject: A long subject\r\n that", b"subject:A   long subject that")
    assert verify_all(signed, _dns()) == [True, True]
    assert verify_all(_signed(MAIL, [_key(RSA, SIMPLE_BODY)]).replace(b"Hello  ", b"Hello "), _dns()) == [False]


def test_a_signature_may_have_an_end() -> None:
    assert b" t=1764000000; x=1764086400;" in _signed(MAIL, lifetime=86_400)
    assert b" x=" not in _signed(MAIL)


def test_an_international_sender_is_signed_with_a_labels() -> None:
    domain = signing_domain("Müller.example.")
    assert domain == "xn--mller-kva.example"
    mail = compile_mail(UUID(int=7), compile_template("Grüße", None, "Hallo"), Sender("jörg@müller.example", "Jörg"))
    envelope = mail.build(0, "a@b.example", None, {}, None)
    assert envelope.smtputf8
    assert from_domain(envelope.content) == domain
    signed = _signed(envelope.content, [_key(RSA, RELAXED, domain), _key(ED25519, RELAXED, domain)])
    assert b" d=xn--mller-kva.example;" in signed
    assert verify_all(signed, _dns(domain)) == [True, True]


@pytest.mark.parametrize(
    ("head", "domain"),
    [
        (b"From: a@B.Example\r\nTo: x@y\r\n\r\nfrom: b@c\r\n", "b.example"),
        (b"Subject: x\r\nfrom : =?utf-8?b?QA==?=\r\n <a@b.example>\r\n\r\n", "b.example"),
        (b'From: "who@else.example" <a@b.example>\r\n\r\n', "b.example"),
        (b"Subject: x\r\n\r\n", ""),
    ],
)
def test_the_domain_is_that_of_header_from(head: bytes, domain: str) -> None:
    assert from_domain(head) == domain


def test_a_domain_and_its_parents_may_sign() -> None:
    assert domain_and_parents("a.b.example.com") == ["a.b.example.com", "b.example.com", "example.com"]
    assert domain_and_parents("example.com") == ["example.com"]
    assert domain_and_parents("localhost") == ["localhost"]


@pytest.mark.parametrize(
    "domain", ["", "com", "a b.com", "a@shop.com", "-x.com", "x" * 64 + ".com", "127.0.0.1", "shop.com\n.net"]
)
def test_what_is_no_domain_of_mail_is_refused(domain: str) -> None:
    with pytest.raises(InvalidInput, match="domain"):
        signing_domain(domain)


@pytest.mark.parametrize(
    "selector", ["", "A", "a_b", "a.", ".a", "-a", "a b", "a" * 64, "é", ".".join(["abcdefgh"] * 29)]
)
def test_what_is_no_selector_is_refused(selector: str) -> None:
    with pytest.raises(InvalidInput, match="selector"):
        check_selector(selector, DOMAIN)


def test_a_selector_of_ours_is_one() -> None:
    from datetime import date

    selector = new_selector(RSA, date(2025, 11, 25))
    check_selector(selector, DOMAIN)
    assert selector.startswith("rsa-20251125-")
    check_selector("mail.2025", DOMAIN)


def test_a_record_is_cut_into_strings_that_dns_carries() -> None:
    record = record_of(DOMAIN, "s1", RSA, _pair(RSA).public)
    assert record.name == "s1._domainkey.shop.example"
    assert "".join(record.strings) == record.value
    assert [len(one) <= 255 for one in record.strings] == [True, True]
    assert record.zone.splitlines()[0] == "s1._domainkey.shop.example. IN TXT ("
    short = record_of(DOMAIN, "s2", ED25519, _pair(ED25519).public)
    assert short.zone == f's2._domainkey.shop.example. IN TXT "v=DKIM1; k=ed25519; p={_pair(ED25519).public}"'


def _pem(key: Any, kind: PrivateFormat = PrivateFormat.PKCS8, secret: bytes | None = None) -> str:
    encryption = BestAvailableEncryption(secret) if secret else NoEncryption()
    return key.private_bytes(Encoding.PEM, kind, encryption).decode()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_a_key_made_elsewhere_is_read(kind: PrivateFormat) -> None:
    key = load_der_private_key(base64.b64decode(_pair(RSA).private), None)
    assert read_pem(_pem(key, kind)) == _pair(RSA)
    edwards = load_der_private_key(base64.b64decode(_pair(ED25519).private), None)
    assert read_pem(_pem(edwards)) == _pair(ED25519)


def test_keys_that_are_weak_or_of_another_kind_are_refused() -> None:
    small = _pem(rsa.generate_private_key(65537, 1024))
    wrong = {
        small: "1024 bits",
        _pem(ec.generate_private_key(ec.SECP256R1())): "neither RSA nor Ed25519",
        _pem(load_private(_pair(RSA).private), secret=b"hush"): "encrypted",
        "no key": "no private key",
        "": "no private key",
        small.replace("M", "N", 20): "no private key",
    }
    for text, reason in wrong.items():
        with pytest.raises(InvalidInput, match=reason):
            read_pem(text)


def test_a_private_key_is_in_no_repr() -> None:
    private = _pair(RSA).private
    assert private not in repr(_pair(RSA))
    assert "RSAPrivateKey" not in repr(_key(RSA, RELAXED))


def test_dkimpy_refuses_without_the_record() -> None:
    """Else none of these tests could fail."""
    assert verify_all(_signed(MAIL), Dns([])) == [False, False]
    assert not dkim.verify(MAIL, dnsfunc=_dns())
    assert Record("a", "b").strings == ["b"]
