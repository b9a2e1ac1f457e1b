import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.replies import MAX_TEXT, About, Reply, ReplyClass, Stage, classify, parse_reply
from core.reply_texts import GREYLISTED_FOR


@pytest.mark.parametrize(
    ("code", "text", "reply"),
    [
        (250, "2.0.0 Ok: queued as 4B1C", Reply(250, "2.0.0", "Ok: queued as 4B1C")),
        (250, "OK", Reply(250, None, "OK")),
        (550, "5.1.1", Reply(550, "5.1.1", "")),
        (550, "5.1.1 The account\n5.1.1 does not exist.\n5.1.1  ", Reply(550, "5.1.1", "The account does not exist.")),
        (550, "5.7.511 banned", Reply(550, "5.7.511", "banned")),
        (550, "4.7.1 class and code differ", Reply(550, None, "4.7.1 class and code differ")),
        (250, "5.1.1.1 is no code", Reply(250, None, "5.1.1.1 is no code")),
        (250, "2.0.0Ok", Reply(250, None, "2.0.0Ok")),
        (250, "", Reply(250, None, "")),
        (550, "5.1.1 n\udcff\x00o", Reply(550, "5.1.1", "n\ufffd o")),
    ],
)
def test_a_reply_gives_its_enhanced_code(code: int, text: str, reply: Reply) -> None:
    assert parse_reply(code, text) == reply


@given(st.integers(200, 599), st.binary())
def test_any_reply_can_be_stored(code: int, said: bytes) -> None:
    text = parse_reply(code, said.decode("utf-8", "surrogateescape")).text
    assert len(text.encode("utf-8").decode()) <= MAX_TEXT
    assert len(text.splitlines()) <= 1
    assert "\x00" not in text


@pytest.mark.parametrize(
    ("code", "enhanced", "stage", "about"),
    [
        # By the enhanced code, whatever the stage.
        (550, "5.1.1", Stage.RCPT, About.RECIPIENT),
        (550, "5.1.1", Stage.CONTENT, About.RECIPIENT),
        (550, "5.1.10", Stage.RCPT, About.RECIPIENT),
        (550, "5.1.8", Stage.MAIL, About.SENDER),
        (550, "5.1.8", Stage.RCPT, About.SENDER),
        (552, "5.2.2", Stage.RCPT, About.RECIPIENT),
        (552, "5.2.3", Stage.CONTENT, About.MESSAGE),
        (451, "4.3.0", Stage.CONTENT, About.RELAY),
        (552, "5.3.4", Stage.MAIL, About.MESSAGE),
        (451, "4.4.1", Stage.CONTENT, About.RELAY),
        (550, "5.4.1", Stage.RCPT, About.RECIPIENT),
        (503, "5.5.1", Stage.DATA, About.RELAY),
        (550, "5.6.7", Stage.MAIL, About.MESSAGE),
        # Policy.
        (550, "5.7.1", Stage.MAIL, About.SENDER),
        (550, "5.7.1", Stage.RCPT, About.SENDER),
        (554, "5.7.1", Stage.RCPT, About.SENDER),
        (550, "5.7.1", Stage.CONTENT, About.MESSAGE),
        (535, "5.7.8", Stage.MAIL, About.RELAY),
        (550, "5.7.17", Stage.RCPT, About.RECIPIENT),
        # An enhanced code that says nothing.
        (550, "5.0.0", Stage.RCPT, About.RECIPIENT),
        (550, "5.9.9", Stage.CONTENT, About.MESSAGE),
        # By the code and the stage.
        (550, None, Stage.MAIL, About.SENDER),
        (550, None, Stage.RCPT, About.RECIPIENT),
        (553, None, Stage.RCPT, About.RECIPIENT),
        (450, None, Stage.RCPT, About.RECIPIENT),
        (552, None, Stage.MAIL, About.MESSAGE),
        (552, None, Stage.RCPT, About.RECIPIENT),
        (552, None, Stage.CONTENT, About.MESSAGE),
        (554, None, Stage.RCPT, About.RELAY),
        (554, None, Stage.CONTENT, About.MESSAGE),
        (556, None, Stage.RCPT, About.RECIPIENT),
        (451, None, Stage.RCPT, About.RELAY),
        (421, None, Stage.RCPT, About.RELAY),
        (500, None, Stage.RCPT, About.RELAY),
        (530, None, Stage.MAIL, About.RELAY),
    ],
)
def test_a_refusal_is_about_somebody(code: int, enhanced: str | None, stage: Stage, about: About) -> None:
    found = classify(Reply(code, enhanced, ""), stage)
    assert (found.permanent, found.about) == (code >= 500, about)
    assert found.wait is None


@given(st.integers(400, 599), st.integers(0, 999), st.integers(0, 999), st.sampled_from(Stage))
def test_every_refusal_has_a_class_and_the_first_digit_decides_about_permanence(
    code: int, subject: int, detail: int, stage: Stage
) -> None:
    for enhanced in (None, f"{code // 100}.{subject}.{detail}"):
        assert classify(Reply(code, enhanced, ""), stage).permanent == (code // 100 == 5)


def test_relay_access_denied_never_suppresses_a_recipient() -> None:
    said = parse_reply(554, "5.7.1 <user@example.com>: Relay access denied")
    assert classify(said, Stage.RCPT).about is not About.RECIPIENT
    assert classify(parse_reply(554, "blocked, see https://rbl.example/"), Stage.RCPT).about is not About.RECIPIENT


NOBODY = ReplyClass(True, About.RECIPIENT, no_mailbox=True)
BOUNCED = ReplyClass(True, About.RECIPIENT)
LATER = ReplyClass(False, About.RECIPIENT)
WE = ReplyClass(True, About.SENDER, policy=True)
WE_LATER = ReplyClass(False, About.SENDER, policy=True)
OUR_WORDS = ReplyClass(True, About.MESSAGE, policy=True)


@pytest.mark.parametrize(
    ("said", "stage", "means"),
    [
        # Gmail
        (
            "550-5.1.1 The email account that you tried to reach does not exist. Please try\n"
            "550-5.1.1 double-checking the recipient's email address for typos or\n"
            "550-5.1.1 unnecessary spaces. For more information, go to\n"
            "550 5.1.1  https://support.google.com/mail/?p=NoSuchUser n13-20020a05622a040d00 - gsmtp",
            Stage.RCPT,
            NOBODY,
        ),
        (
            "552-5.2.2 The email account that you tried to reach is over quota. Please direct\n"
            "552-5.2.2 the recipient to\n552 5.2.2  https://support.google.com/mail/?p=OverQuotaPerm si132 - gsmtp",
            Stage.RCPT,
            BOUNCED,
        ),
        ("452 4.2.2 The recipient's inbox is out of storage space.", Stage.RCPT, LATER),
        ("550 5.2.1 The email account that you tried to reach is inactive.", Stage.RCPT, BOUNCED),
        (
            "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages "
            "from being delivered. Please resend your message at a later time.",
            Stage.RCPT,
            LATER,
        ),
        (
            "421-4.7.0 Our system has detected an unusual rate of unsolicited mail originating from your IP address. To\n"
            "421-4.7.0 protect our users from spam, mail sent from your IP address has been\n"
            "421 4.7.0 temporarily rate limited.",
            Stage.CONTENT,
            ReplyClass(False, About.MESSAGE, policy=True),
        ),
        (
            "550-5.7.1 Our system has detected that this message is likely unsolicited mail. To reduce the amount of\n"
            "550 5.7.1 spam sent to Gmail, this message has been blocked.",
            Stage.CONTENT,
            OUR_WORDS,
        ),
        (
            "550-5.7.26 This mail has been blocked because the sender is unauthenticated.\n"
            "550 5.7.26 Gmail requires all senders to authenticate with either SPF or DKIM.",
            Stage.CONTENT,
            OUR_WORDS,
        ),
        # Outlook, Hotmail
        ("550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302).", Stage.RCPT, BOUNCED),
        (
            "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
            Stage.CONTENT,
            NOBODY,
        ),
        (
            "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service "
            "provider since part of their network is on our block list (S3150). You can also refer your provider to "
            "http://mail.live.com/mail/troubleshooting.aspx#errors.",
            Stage.MAIL,
            WE,
        ),
        ("550 5.7.1 Service unavailable, Client host [192.0.2.1] blocked using Spamhaus.", Stage.RCPT, WE),
        (
            "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.",
            Stage.MAIL,
            WE_LATER,
        ),
        ("550 5.7.511 Access denied, banned sender[192.0.2.1].", Stage.RCPT, WE),
        # Yahoo, AOL
        (
            "554 delivery error: dd This user doesn't have a yahoo.com account (who@yahoo.com) [0] - mta1234.mail.bf1",
            Stage.CONTENT,
            NOBODY,
        ),
        ("552 1 Requested mail action aborted, mailbox not found", Stage.CONTENT, NOBODY),
        (
            "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints "
            "- 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
            Stage.MAIL,
            WE_LATER,
        ),
        (
            "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list",
            Stage.RCPT,
            WE,
        ),
        (
            "554 delivery error: dd Sorry your message to who@yahoo.de cannot be delivered. This account has been "
            "disabled or discontinued",
            Stage.CONTENT,
            BOUNCED,
        ),
        # iCloud
        ("550 5.1.1 <who@icloud.com>: user does not exist", Stage.RCPT, NOBODY),
        ("550 5.1.1 unknown or illegal alias: who@me.com", Stage.RCPT, NOBODY),
        ("552 5.2.2 <who@icloud.com>: user is over quota", Stage.RCPT, BOUNCED),
        ("550 5.1.1 <who@icloud.com>: inactive email address", Stage.RCPT, BOUNCED),
        # GMX, web.de, T-Online, freenet
        ("550 5.1.1 <who@gmx.de>... User is unknown", Stage.RCPT, NOBODY),
        ("550 Requested action not taken: mailbox unavailable", Stage.RCPT, BOUNCED),
        ("554 Transaction failed Reject due to policy restrictions.", Stage.CONTENT, OUR_WORDS),
        ("550 Benutzer nicht bekannt/User unknown", Stage.RCPT, NOBODY),
        (
            "550 Benutzer hat das Speichervolumen ueberschritten. / User has exhausted allowed storage space.",
            Stage.RCPT,
            BOUNCED,
        ),
        (
            "554 IP=192.0.2.1 - None/bad reputation. Ask your postmaster for help or to contact tobr@rx.t-online.de for "
            "reset. (NOWL)",
            Stage.RCPT,
            ReplyClass(True, About.RELAY, policy=True),
        ),
        ("552 5.2.2 <599002574263-0001> Quota exceeded (mailbox for user is full)", Stage.RCPT, BOUNCED),
        # Orange, La Poste
        (
            "550 5.1.1 hhtzumeItI371 Adresse d au moins un destinataire invalide. Invalid recipient. OFR_416 [416]",
            Stage.RCPT,
            NOBODY,
        ),
        ("552 5.1.1 hibJumn68 Boite du destinataire pleine. Recipient overquota. OFR_417 [417]", Stage.RCPT, BOUNCED),
        (
            "550 5.7.1 svxsoAJqydXC2 Adresse IP source bloquee pour incident de spam. Client host blocked for spamming "
            "issues. OFR006_101 Ref http://r.orange.fr/r/Oassistance_adresserejetee?ec=OFR006_101",
            Stage.RCPT,
            WE,
        ),
        # mail.ru, Yandex
        (
            "550 Message was not accepted -- invalid mailbox.  Local mailbox who@mail.ru is unavailable: user not found",
            Stage.RCPT,
            NOBODY,
        ),
        (
            "550 spam message rejected. Please visit http://help.mail.ru/notspam-support/id?c=37o1 or  report details to "
            "abuse@corp.mail.ru. Error code: BA35. ID: 0000.",
            Stage.CONTENT,
            OUR_WORDS,
        ),
        ("550 5.7.1 No such user!", Stage.RCPT, NOBODY),
        ("554 5.7.1 Message rejected under suspicion of SPAM; https://ya.cc/1IrBc", Stage.CONTENT, OUR_WORDS),
        # Postfix, Exim, and what stands before them
        (
            "550 5.1.1 <who@example.net>: Recipient address rejected: User unknown in virtual mailbox table",
            Stage.RCPT,
            NOBODY,
        ),
        ("554 5.7.1 <who@example.net>: Relay access denied", Stage.RCPT, ReplyClass(True, About.RELAY)),
        (
            "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org; "
            "https://www.spamhaus.org/query/ip/192.0.2.1",
            Stage.RCPT,
            WE,
        ),
        ("550 5.1.1 <who@example.net>: Recipient address rejected: blocked", Stage.RCPT, WE),
        ("550 5.1.1 <spam@example.net>: no such user here", Stage.RCPT, NOBODY),
        (
            "552 5.3.4 Message size exceeds fixed maximum message size",
            Stage.MAIL,
            ReplyClass(True, About.MESSAGE),
        ),
    ],
)
def test_the_large_providers_are_understood(said: str, stage: Stage, means: ReplyClass) -> None:
    code = int(said[:3])
    found = classify(parse_reply(code, "\n".join(line[4:] for line in said.splitlines())), stage)
    assert found == means
    assert found.suppresses == (means is NOBODY)


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("4.7.1 Greylisted, please try again in 5 minutes", 300),
        ("4.2.0 Greylisted, please try again in 300 seconds", 300),
        ("4.7.1 Greylisting in action, please come back in 00:04:30", 270),
        (
            "4.2.0 <who@example.net>: Recipient address rejected: Greylisted, see http://postgrey.example/60s",
            GREYLISTED_FOR,
        ),
        ("4.7.0 too many messages, try again after 2 hours", 7200),
        ("4.7.0 Too fast. Retry in 90s", 90),
        ("4.3.2 please wait 1 min.", 60),
        ("4.2.2 mailbox full, 30 messages, try later", None),
        ("4.3.0 error 300 seconds", None),
        ("4.7.1 try again later", None),
    ],
)
def test_a_wait_is_taken_from_the_text(text: str, wait: float | None) -> None:
    assert classify(parse_reply(451, text), Stage.RCPT).wait == wait
    assert classify(parse_reply(551, text.replace("4.", "5.", 1)), Stage.RCPT).wait is None


@given(st.integers(400, 599), st.text(max_size=MAX_TEXT), st.sampled_from(Stage))
def test_any_text_has_a_class_and_only_a_missing_mailbox_suppresses(code: int, text: str, stage: Stage) -> None:
    found = classify(parse_reply(code, text), stage)
    assert found.permanent == (code >= 500)
    if found.suppresses:
        assert stage is not Stage.MAIL
        assert found.about is About.RECIPIENT
