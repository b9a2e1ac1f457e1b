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
)
BY_USER = re.compile(
    r"\buser_id (=|IN) \(?\$\d|user_id = ANY ?\(\$\d|INTO \w+( AS \w+)? \((\w+, )*user_id|SELECT \$1, ", re.IGNORECASE
)
"""A condition on the user's id, or the id among the inserted values."""

BY_PROCESS = {
    "rotate-secrets": {"encrypted_relays", "encrypt_relay_again"},
    "worker leads": {"claim_chunk", "import_of_chunk", "finish_chunk", "mark_chunks_announced", "add_rejects"},
    "worker emails": {
        "claim_batch",
        "mark_tried",
        "fence_batches",
        "write_outcomes",
        "end_batches",
        "return_batches",
        "stopped_sends",
        "mark_batches_announced",
        "known_mails",
        "add_mails",
        "claim_added",
        "held_batches",
    },
    "worker progress": {"write_progress", "intake_ends", "add_dead_letter"},
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
        "unannounced_batches",
        "unannounced_chunks",
        "finish_import",
        "unfinished_imports",
        "mark_stalled_imports",
        "mark_dead_chunks",
        "ended_unsettled",
        "batches_to_publish",
        "lock_finished_sends",
        "finish_sends",
        "materialise_page",
        "sends_to_materialise",
        "forget_answers",
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
}
"""These act for all users, on rows that the ledger gave them."""

BY_OWN_ID = {
    "add_chunks": "of the import that this request has made",
    "receive_import": "of the import that this request has made",
    "finish_import": "of the import that this request has made",
    "move_progress": "of the operation that the statement before it found by its user",
    "find_key": "tells who asks",
    "shared_limits": "limits of what all users share; listed for admin keys alone",
    "set_shared_limit": "the same",
    "remove_shared_limit": "the same",
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
