"""A CSV of leads as people upload them, the same one each time, and what an import of it has to count."""

import csv
import io
import random
from collections import Counter
from dataclasses import dataclass

COLUMNS = ("email", "name", "city", "plan", "note")
NAMES = (
    "Anna Berg",
    "José Álvarez",
    "Łukasz Nowak",
    "李 小龙",
    "Zoë O'Neil",
    "Müller, Jürgen",
    "Иван Петров",
    'Bo "Bob" Li',
)
CITIES = ("Köln", "São Paulo", "Zürich", "Kraków", "東京", "Paris")
NOTES = ("", "", "", "met at the fair", 'said "later"', "two\nlines", "a, b; c", "naïve — ✓")
BROKEN = ("no-at-sign", "two@@example.com", "@example.com", "dot.@example.com", "space in@example.com", "")


@dataclass(frozen=True, slots=True)
class Sample:
    """`rejected` counts the rows that must be refused."""

    data: bytes
    rows: int
    stored: int
    duplicate: int
    rejected: int


def make_sample(rows: int, seed: int = 7) -> Sample:
    """Of 100 rows about one is malformed, one has too few cells and two bring an address again."""
    chance = random.Random(seed)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    ends: Counter[str] = Counter()
    for number in range(rows):
        row = [
            f"lead.{number}@example{number % 97}.com",
            chance.choice(NAMES),
            chance.choice(CITIES),
            chance.choice(("free", "pro", "team")),
            chance.choice(NOTES),
        ]
        kind = chance.random()
        if kind < 0.01:
            row[0] = chance.choice(BROKEN)
            ends["rejected"] += 1
        elif kind < 0.02:
            row = row[:3]
            ends["rejected"] += 1
        elif kind < 0.04 and number > 100:
            # The first hundred rows are at risk of being broken, too: one that is known to be sound comes again.
            row[0] = "Lead.Again@Example.com" if ends["again"] else "lead.again@example.com"
            ends["duplicate" if ends["again"] else "stored"] += 1
            ends["again"] += 1
        else:
            ends["stored"] += 1
        writer.writerow(row)
    return Sample(text.getvalue().encode(), rows, ends["stored"], ends["duplicate"], ends["rejected"])
