"""The wheel that product developers install: the client alone, and what it needs."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("api", "streams", "store", "mailer", "core", "schemas", "console", "devstack", "tests", "bench", "migrations")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *PIP,
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        ".",
        str(ROOT / "mailgenius"),
        cwd=folder,
    )
    [made] = folder.glob("*.whl")
    return made


def test_the_wheel_has_the_client_and_nothing_of_the_server(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        about = Parser().parsestr(packed.read("mailgenius-0.1.0.dist-info/METADATA").decode())
    modules = {f"mailgenius/{path.name}" for path in (ROOT / "mailgenius").glob("*.py")} | {"mailgenius/py.typed"}
    assert {name for name in names if not name.startswith("mailgenius-")} == modules
    needs = {line.split("<")[0].split(">")[0].strip() for line in about.get_all("Requires-Dist", [])}
    assert needs == {"httpx", "msgspec"}
    assert "import_leads" in str(about.get_payload())


def test_what_is_installed_alone_can_be_imported(wheel: Path, tmp_path: Path) -> None:
    """In a folder of its own, with nothing else of this project on the way."""
    run(*PIP, "install", "--no-deps", "--no-index", "--target", "installed", str(wheel), cwd=tmp_path)
    script = f"""
import sys
sys.path.insert(0, "installed")
import mailgenius
assert mailgenius.__file__.startswith({str(tmp_path)!r}), mailgenius.__file__
assert not set(sys.modules) & set({OTHERS!r})
client = mailgenius.MailGenius("https://queue.example", "mg_key")
assert client.leads.import_leads and client.progress.subscribe
"""
    run(sys.executable, "-I", "-W", "error", "-c", script, cwd=tmp_path)
