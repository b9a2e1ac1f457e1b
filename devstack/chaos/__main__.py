"""`make chaos`: rounds of faults under load; ROUNDS=, SEED=, SECONDS= of a fault, FAULTS= names, parted by commas."""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import save
from devstack.chaos.faults import FAULTS
from devstack.chaos.rounds import Round, run_rounds, standing
from devstack.errors import StartFailed
from devstack.lock import InUse

ROUNDS = int(os.environ.get("ROUNDS", str(len(FAULTS))))
SEED = int(os.environ.get("SEED", "1"))
SECONDS = os.environ.get("SECONDS")
NAMES = [name.strip() for name in os.environ.get("FAULTS", "").split(",") if name.strip()]
HOME = Path(".devstack/chaos")
FULL_SPEED_WITHIN = 30.0


def main() -> int:
    """0 when every round ended as it should."""
    faults = [fault for fault in FAULTS if not NAMES or fault.name in NAMES]
    if not faults:
        print(
            f"chaos: none of FAULTS is known; there are: {', '.join(fault.name for fault in FAULTS)}", file=sys.stderr
        )
        return 1
    rounds: list[Round] = []
    try:
        with standing(HOME, SEED) as (place, client):
            for one in run_rounds(place, client, ROUNDS, faults, float(SECONDS) if SECONDS else None):
                rounds.append(one)
                print(line(one), flush=True)
    except (InUse, StartFailed) as error:
        print(f"chaos: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("chaos: stopped", file=sys.stderr)
    if not rounds:
        return 1
    show(rounds)
    save("chaos", result(rounds))
    print(summary(rounds))
    return 0 if len(rounds) == ROUNDS and all(one.right for one in rounds) else 1


def line(one: Round) -> str:
    found = one.verdict
    what = f"{time.strftime('%H:%M:%S')} {one.number:>3}  {' + '.join(one.faults)}, {one.seconds:g} s"
    copies = f"repeated {found.repeated} of {found.allowed}, unknown {found.unknown}"
    ends = f"{found.mails} mails, {found.arrived} arrived, lost {found.lost}, {copies}"
    speed = "not at full speed again" if one.recovered is None else f"full speed after {one.recovered:.1f} s"
    return f"{what}: {ends}, {speed}" + "".join(f"\n      {one}" for one in found.wrong)


def show(rounds: Sequence[Round]) -> None:
    by_fault: dict[str, list[Round]] = defaultdict(list)
    for one in rounds:
        for name in one.faults:
            by_fault[name].append(one)
    table = Table("fault", "rounds", "lost", "repeated", "allowed", "over limit", "full speed after", "wrong")
    for column in table.columns[1:]:
        column.justify = "right"
    for fault in FAULTS:
        some = by_fault.get(fault.name, [])
        if some:
            verdicts = [one.verdict for one in some]
            slowest = [one.recovered for one in some]
            table.add_row(
                fault.name,
                str(len(some)),
                *(
                    str(sum(getattr(one, name) for one in verdicts))
                    for name in ("lost", "repeated", "allowed", "over_limit")
                ),
                "never" if None in slowest else f"{max(one for one in slowest if one is not None):.1f} s",
                str(sum(not one.right for one in some)),
            )
    Console(width=140).print(table)


def result(rounds: Sequence[Round]) -> dict[str, Any]:
    slowest = [one.recovered for one in rounds if one.recovered is not None]
    return {
        "seed": SEED,
        "summary": summary(rounds),
        "slowest_to_full_speed_s": round(max(slowest), 1) if slowest else None,
        "rounds_slower_than_30_s": sum(one.recovered is None or one.recovered > FULL_SPEED_WITHIN for one in rounds),
        "mails": sum(one.verdict.mails for one in rounds),
        "rounds": [
            {
                "faults": one.faults,
                "seconds": one.seconds,
                "before_per_second": round(one.before),
                "full_speed_after_s": None if one.recovered is None else round(one.recovered, 1),
                "healed_after_s": None if one.healed is None else round(one.healed, 1),
                **{
                    name: getattr(one.verdict, name)
                    for name in ("mails", "arrived", "lost", "repeated", "allowed", "excess")
                },
                **{name: getattr(one.verdict, name) for name in ("over_limit", "unknown", "wrong")},
            }
            for one in rounds
        ],
    }


def summary(rounds: Sequence[Round]) -> str:
    verdicts = [one.verdict for one in rounds]
    names = ("lost", "repeated", "allowed", "over_limit")
    sums = " ".join(f"{name}={sum(getattr(one, name) for one in verdicts)}" for name in names)
    return f"chaos: rounds={len(rounds)} {sums} unrecovered={sum(one.unrecovered for one in rounds)}"


if __name__ == "__main__":
    sys.exit(main())
