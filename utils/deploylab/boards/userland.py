"""Programs and libraries from Debian's archive in a folder, without root and without touching the system's own.

apt does the work, with the machine's own sources and keys but with a state and a cache of its own: it resolves what a
package needs, resumes an interrupted download and checks every file against the signed index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploylab.errors import BoardError

HOST = ""
"""The architecture of this machine; what is installed here is then not fetched again."""
_TIMEOUT_S = 600
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian")


def fetch(packages: Sequence[str], downloads: Path, architecture: str = HOST) -> list[Path]:
    """Download Debian packages and what they depend on. Returns the files, in ``downloads``.

    ``architecture`` is Debian's name, such as ``arm64``; then everything is fetched down to the C library. Raises
    :class:`BoardError` without apt, without a network, and if the archive has no such package.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise BoardError(
            "the emulator takes its arm64 system from Debian's archive with apt-get, which is not here; "
            "use Debian or Ubuntu, there also in a container or in WSL"
        )
    folder = downloads / (architecture or "host")
    environment = {**os.environ, "APT_CONFIG": str(_configuration(folder, architecture)), "LC_ALL": "C"}
    _apt(["update"], environment, architecture)
    archives, nothing = folder / "archives", folder / "nothing"
    listed = _apt(
        ["install", "--print-uris", "-o", f"Dir::Cache::archives={nothing}", *packages], environment, architecture
    )
    _apt(["install", "--download-only", *packages], environment, architecture)
    # 'ADDRESS' NAME SIZE HASH; older versions may lie beside them
    return [archives / line.split()[1] for line in listed.splitlines() if line.startswith("'")]


def unpack(files: Sequence[Path], folder: Path) -> None:
    """Unpack Debian packages into a folder, without their documentation. No script of a package is run."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        _run(["dpkg-deb", "-x", str(file), str(folder)], f"cannot unpack {file.name}")
    for name in _NOT_NEEDED:
        shutil.rmtree(folder / name, ignore_errors=True)


def _configuration(folder: Path, architecture: str) -> Path:
    for part in ("lists/partial", "archives/partial", "nothing/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    settings = [
        f'Dir::State::Lists "{folder}/lists"',
        f'Dir::Cache "{folder}"',
        f'Dir::Cache::archives "{folder}/archives"',
        'APT::Install-Recommends "false"',
        'APT::Get::Assume-Yes "true"',
        'APT::Sandbox::User ""',  # its own user may not enter the cache folder
        'Acquire::Languages "none"',
        'Acquire::Retries "2"',
        'Debug::NoLocking "true"',  # the lock is for installing
    ]
    if architecture:
        (folder / "status").touch()  # nothing is installed there
        settings += [
            f'Dir::State::status "{folder}/status"',
            f'APT::Architecture "{architecture}"',
            f'APT::Architectures {{ "{architecture}"; }}',
        ]
    path = folder / "apt.conf"
    path.write_text("".join(f"{setting};\n" for setting in settings), encoding="utf-8")
    return path


def _apt(arguments: Sequence[str], environment: dict[str, str], architecture: str) -> str:
    hint = (
        f"is the network there, and do this machine's sources (/etc/apt) offer {architecture or 'its'} packages? "
        "Run the command again: what was downloaded is kept"
    )
    return _run(["apt-get", "-q", *arguments], f"apt-get {arguments[0]} failed; {hint}", environment)


def _run(command: Sequence[str], failure: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BoardError(f"{failure} ({error})") from error
    if done.returncode:
        said = "\n  ".join((done.stdout + done.stderr).strip().splitlines()[-6:])
        raise BoardError(f"{failure}. It said last:\n  {said}")
    return done.stdout
