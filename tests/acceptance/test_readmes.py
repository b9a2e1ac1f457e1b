"""What the READMEs show of the Python client runs as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import System, run

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = ROOT / "mailgenius" / "README.md"


def blocks() -> list[str]:
    """Each once: the project's README may show what the client's own does."""
    found = [block for path in (README, ROOT / "README.md") for block in BLOCK.findall(path.read_text())]
    return list(dict.fromkeys(block for block in found if "mailgenius" in block))


def test_the_clients_readme_shows_the_client() -> None:
    assert "import_leads" in "".join(BLOCK.findall(README.read_text()))


@pytest.mark.parametrize("block", blocks())
def test_a_block_runs_as_it_stands(system: System, block: str) -> None:
    key = run(system.environment, "-m", "streams", "key", "--scope", "service", "--name", "readme")
    environment = {**os.environ, "MAILGENIUS_URL": system.processes.api_url, "MAILGENIUS_KEY": key}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1000 leads are stored" in done.stdout
    assert "done: 2 mails are sent" in done.stdout
    assert len(system.arrivals().mails) == 2
