"""The README's commands, run as they stand there."""

import os
import re
import subprocess
from pathlib import Path

from tests.acceptance.conftest import System, run

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_examples_work_as_written(system: System, tmp_path: Path) -> None:
    system.script(delay=2)  # a send of two mails would be over before it can be paused
    key = run(system.environment, "-m", "streams", "key", "--scope", "service", "--name", "readme")
    script = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace(
        "curl -sS", "curl -sS --fail-with-body"
    )
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "API": system.processes.api_url, "KEY": key},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"importId"' in done.stdout
    assert '"sendId"' in done.stdout
    # The receipt; the campaign was cancelled.
    system.until(lambda: system.ledger("acme").mails.get("sent", 0) >= 1, within=20)


def test_the_commands_it_names_are_there() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for name in re.findall(r"`?make (\w+)", README):
        assert f"\n{name}:" in makefile or name == "alone", name
