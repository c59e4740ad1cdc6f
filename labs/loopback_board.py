"""Lab 40: a login on an emulated board, through OpenSSH's real server and without a network.

sshd serves one connection on its standard input and output (``sshd -i``). The client starts it
as its ``ProxyCommand``: no port is opened, and the server ends with the connection.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deploylab.boards.emulator import Board

NAME = "pi"
_SYSTEM = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"))

# Run as root, sshd wants the empty folder that Debian's service makes: only it sees this one.
_SERVE = """#!/bin/sh
set -- {sshd} -i -f {folder}/sshd_config -E {folder}/sshd.log
if [ "$(id -u)" = 0 ] && [ ! -d /run/sshd ]; then
    prepare='mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"'
    exec unshare --mount sh -c "$prepare" sh "$@"
fi
exec "$@"
"""
_BOARD = '#!/bin/sh\nexec {shell} "$SSH_ORIGINAL_COMMAND"\n'
_SERVER = """HostKey "{path}/host"
AuthorizedKeysFile "{path}/user.pub"
ForceCommand {folder}/board.sh
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""
_CLIENT = """Host {name}
  User {user}
  ProxyCommand {folder}/serve.sh
  IdentityFile "{path}/user"
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile "{path}/known_hosts"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


def missing() -> list[str]:
    """OpenSSH's programs that are not here."""
    return [name for name in ("sshd", "ssh", "ssh-keygen") if not _found(name)]


@contextlib.contextmanager
def login(board: Board, folder: Path) -> Iterator[str]:
    """The address of ``board`` for ``ssh:``; keys and settings go into ``folder``.

    What the client asks for runs on the emulated board, as root of its own file system.
    """
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    for name in ("host", "user"):
        _keygen(folder / name)
    names = {"path": folder, "folder": shlex.quote(str(folder)), "name": NAME}
    names |= {"user": getpass.getuser(), "sshd": _found("sshd")}
    names["shell"] = shlex.join(board.shell("/bin/sh", "-c"))
    for name, text in (("serve.sh", _SERVE), ("board.sh", _BOARD)):
        (folder / name).write_text(text.format(**names))
        (folder / name).chmod(0o700)
    (folder / "sshd_config").write_text(_SERVER.format(**names))
    (folder / "ssh_config").write_text(_CLIENT.format(**names))
    (folder / "known_hosts").write_text(f"{NAME} {(folder / 'host.pub').read_text()}")
    before = os.environ.get("DEPLOYLAB_SSH")
    os.environ["DEPLOYLAB_SSH"] = shlex.join(["ssh", "-F", str(folder / "ssh_config")])
    try:
        yield NAME
    finally:
        os.environ.pop("DEPLOYLAB_SSH")
        if before is not None:
            os.environ["DEPLOYLAB_SSH"] = before


def _keygen(path: Path) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def _found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SYSTEM)
