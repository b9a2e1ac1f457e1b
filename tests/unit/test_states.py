"""`docs/states.md` names what moves each state: the statements there are."""

import re
from pathlib import Path

import pytest

from store.queries import SQL

TEXT = (Path(__file__).parents[2] / "docs" / "states.md").read_text()
ARROWS = re.findall(r"^  (\S+) --> (\S+): (.+)$", TEXT, re.MULTILINE)


def test_every_arrow_names_a_statement() -> None:
    assert len(ARROWS) > 40
    assert [arrow for arrow in ARROWS if not set(re.findall(r"\w+", arrow[2])) & set(SQL)] == []


@pytest.mark.parametrize(("begin", "end", "label"), ARROWS)
def test_a_statement_writes_the_state_its_arrow_leads_to(begin: str, end: str, label: str) -> None:
    """Outcomes come as values; every other statement has the state in its text, or as the column's default."""
    by_value = {"write_outcomes", "finish_chunk"}
    by_default = {
        "create_dkim_key",
        "create_import",
        "create_send",
        "add_chunks",
        "claim_chunk",
        "release_batches",
        "release_due",
    }
    named = [name for name in re.findall(r"\w+", label) if name in SQL]
    assert [name for name in named if name not in by_value | by_default and f"'{end}'" not in SQL[name]] == []
    assert begin == "[*]" or not set(named) & (by_default - {"release_due"})
