"""Every statement is read for its user: user data is reached with the user's id, or by a process that acts for all users."""

import ast
import re
from pathlib import Path

from store.queries import SQL

ROOT = Path(__file__).parents[2]

USER_DATA = (
    "leads",
    "lead_imports",
    "lead_import_batches",
    "lead_rejects",
    "attachments",
    "campaign_sends",
    "campaign_send_batches",
    "email_sends",
    "mail_keys",
    "suppressions",
    "progress_tracking",
    "user_limits",
    "release_users",
    "api_keys",
    "dead_letters",
    "erasures",
    "answers",
    "relays",
    "dkim_keys",
    "feedback_sources",
    "feedback_events",
    "unsubscribes",
    "webhooks",
    "webhook_deliveries",
)
BY_USER = re.compile(
    r"\buser_id (=|IN) \(?\$\d|user_id = ANY ?\(\$\d|INTO \w+( AS \w+)? \((\w+, )*user_id|SELECT \$1, ", re.IGNORECASE
)
"""A condition on the user's id, or the id among the inserted values."""

BY_PROCESS = {
    "rotate-secrets": {"encrypted_relays", "encrypt_relay_again", "encrypted_secrets", "encrypt_secret_again"}
    | {"encrypted_dkim_keys", "encrypt_dkim_key_again", "encrypted_webhooks", "encrypt_webhook_again"},
    "worker leads": {"claim_chunk", "import_of_chunk", "finish_chunk", "mark_chunks_announced", "add_rejects"}
    | {"rejects_of_chunks"},
    "worker emails": {
        "claim_batch",
        "mark_tried",
        "fence_batches",
        "write_outcomes",
        "end_batches",
        "return_batches",
        "old_claims",
        "return_forgotten",
        "stopped_sends",
        "suppressed_in_hand",
        "active_dkim_keys",
        "dkim_keys_by_id",
        "mark_batches_announced",
        "batch_outcomes",
        "known_mails",
        "add_mails",
        "claim_added",
        "held_batches",
    },
    "worker progress": {"write_progress", "intake_ends", "add_dead_letter", "other_dead_letter"}
    | {"operations_to_compare", "send_blocks", "import_blocks", "batches_of_block", "chunks_of_block"},
    "release": {
        "lease_users",
        "returned_batches",
        "lock_sends",
        "release_batches",
        "release_due",
        "reopen_batches",
        "mark_published",
        "settle_users",
        "measure_release",
    },
    "maintenance": {
        "forget_mail_keys",
        "forget_attachments",
        "unannounced_feedback",
        "forget_feedback",
        "unannounced_batches",
        "unannounced_chunks",
        "finish_import",
        "unfinished_imports",
        "mark_stalled_imports",
        "mark_dead_chunks",
        "letters_to_publish",
        "ended_unsettled",
        "batches_to_publish",
        "lock_finished_sends",
        "finish_sends",
        "materialise_page",
        "sends_to_materialise",
        "forget_answers",
        "unannounced_unsubscribes",
        "mark_unsubscribes_announced",
        "mark_stalled_sends",
        "sends_to_cancel",
        "lock_cancelled_send",
        "cancel_unreleased",
        "cancel_deferred",
        "end_cancelled_send",
        "fence_silent_workers",
        "lock_held_batches",
        "doubtful_mails",
        "rescue_batches",
    },
    "counters of limits that Redis lost": {
        "mails_by_user",
        "mails_by_sending_domain",
        "mails_by_recipient_domain",
        "mails_by_relay",
        "imports_by_user",
    },
    "partitions": {"list_partitions", "unended_sends"},
    "check and doctor": {
        "check_sends",
        "lock_checked_sends",
        "check_recipients",
        "check_cursors",
        "mend_cursors",
        "check_lost_mails",
        "free_lost_mails",
        "check_counts",
        "correct_counts",
        "check_ended_sends",
        "reopen_ended_sends",
        "check_due_times",
        "mend_due_times",
        "check_mail_keys",
        "add_lost_keys",
        "check_held_batches",
        "fence_holders",
        "check_sleepers",
        "check_pointers",
        "check_chunks",
        "check_imports",
        "mend_chunks",
        "mend_imports",
        "check_send_progress",
        "check_import_progress",
        "tell_again",
        "check_untold",
        "check_letters",
        "hasten_letters",
        "add_lost_letters",
        "close_letters",
        "check_suppressions",
        "check_wire",
        "what_waits",
    },
    "webhooks": {
        "add_deliveries",
        "wake_webhooks",
        "lease_webhooks",
        "waiting_deliveries",
        "write_delivery",
        "settle_webhook",
        "fail_webhook",
        "take_tests",
        "write_test",
        "forget_deliveries",
    },
    "recover": {"published_chunks", "lose_chunks", "released_batches"},
}
"""These act for all users, on rows that the ledger gave them."""

BY_OWN_ID = {
    "add_chunks": "of the import that this request has made",
    "receive_import": "of the import that this request has made",
    "finish_import": "of the import that this request has made",
    "move_progress": "of the operation that the statement before it found by its user",
    "find_key": "tells who asks",
    "revoke_key": "of service and admin keys, which act for any user",
    "list_workers": "for service and admin keys; counts batches, and reads none",
    "use_attachments": "of the send that this request has made, each with its user's id",
    "mark_letters_published": "of the records that this request has replayed",
    "mail_of_link": "of the mail that a signed link names",
    "shared_limits": "limits of what all users share; listed for admin keys alone",
    "set_shared_limit": "the same",
    "remove_shared_limit": "the same",
    "read_source": "tells who posts",
    "living_secrets": "of sources that the statement before it found by their user, or of who posts",
    "add_secret": "the same",
    "end_secrets": "the same",
    "hold_source": "of who has signed",
    "known_feedback": "the same",
    "write_feedback": "on mails that lock_feedback_mails found by their user",
    "mark_feedback_announced": "of what this request has told",
}
"""What the API runs without a user's id, and why that is right."""


def _of_a_user(statement: str) -> bool:
    return bool(re.search(rf"\b({'|'.join(USER_DATA)})\b", statement))


def test_every_statement_names_its_user_or_acts_for_all() -> None:
    for_all = set().union(*BY_PROCESS.values()) | set(BY_OWN_ID)
    assert for_all <= set(SQL)
    unbound = {name for name, sql in SQL.items() if _of_a_user(sql) and not BY_USER.search(sql)}
    assert unbound - for_all == set()


def test_the_api_runs_no_statement_that_acts_for_all() -> None:
    reached = _statements_of_the_api()
    assert {"read_import", "create_send", "list_progress"} <= reached
    for_all = set().union(*BY_PROCESS.values())
    assert reached & for_all - set(BY_OWN_ID) == set()
    assert {name for name in reached if not BY_USER.search(SQL[name])} <= set(BY_OWN_ID)


def _statements_of_the_api() -> set[str]:
    """The names of statements in the functions of `store` that `api` imports, and in those they call."""
    calls: dict[str, set[str]] = {}
    statements: dict[str, set[str]] = {}
    for path in (ROOT / "store").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
                calls[node.name] = names
                statements[node.name] = set(re.findall(r'SQL\["(\w+)"\]', ast.unparse(node).replace("'", '"')))
    reached: set[str] = set()
    waiting = {
        alias.name
        for path in (ROOT / "api").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("store.")
        for alias in node.names
    }
    while waiting:
        name = waiting.pop()
        if name in calls and name not in reached:
            reached.add(name)
            waiting |= calls[name] & set(calls)
    return set().union(*(statements[name] for name in reached))
