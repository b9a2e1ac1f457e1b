"""The wheel that product developers install: client and CLI alone, and what they need."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("api", "streams", "store", "mailer", "core", "schemas", "console", "devstack", "tests", "bench", "migrations")
NEEDS = {"click", "httpx", "msgspec", "rich"}
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


def test_the_wheel_has_client_and_cli_and_nothing_of_the_server(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        about = Parser().parsestr(packed.read("mailgenius-0.1.0.dist-info/METADATA").decode())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mailgenius").rglob("*.py")} | {"mailgenius/py.typed"}
    assert {name for name in names if not name.startswith("mailgenius-")} == modules
    needs = {line.split("<")[0].split(">")[0].strip() for line in about.get_all("Requires-Dist", [])}
    assert needs == NEEDS
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


def needed(names: Iterable[str]) -> set[str]:
    """These distributions, and those they need without any extra."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        asked = map(Requirement, distribution(name).requires or ())
        waiting += [one.name for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def test_installed_beside_what_it_asks_for_the_command_works(wheel: Path, tmp_path: Path) -> None:
    """And beside nothing else: no package of this environment, and nothing of this project."""
    run(*PIP, "install", "--no-deps", "--no-index", "--target", "installed", str(wheel), cwd=tmp_path)
    beside = tmp_path / "beside"
    beside.mkdir()
    for name in needed(NEEDS):
        for top in {
            file.parts[0] for file in distribution(name).files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            (beside / top).symlink_to(distribution(name).locate_file(top))
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{tmp_path / 'installed'}:{beside}",
        "XDG_CONFIG_HOME": str(tmp_path),
    }

    def mailgenius(*arguments: str) -> "subprocess.CompletedProcess[str]":
        script = [sys.executable, "-S", "-W", "error", str(tmp_path / "installed" / "bin" / "mailgenius")]
        return subprocess.run(
            [*script, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert mailgenius("--version").stdout == "mailgenius 0.1.0\n"
    for arguments in (["--help"], ["leads", "import", "--help"], ["completion", "zsh"]):
        done = mailgenius(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments
    assert mailgenius("limits").returncode == 2
