"""A real OpenSSH server on this machine's loopback, for the tests of boards over SSH."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = "/usr/local/sbin:/usr/sbin:/sbin"


def missing() -> str:
    """Why there can be no server here; empty if there can."""
    lacking = [name for name in ("sshd", "ssh-keygen", "ssh") if not _which(name)]
    return f"{', '.join(lacking)} missing; sudo apt install openssh-server openssh-client" if lacking else ""


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=PROGRAMS)


class Server:
    """sshd on a free port; every login runs :attr:`board` with the command it asked for in ``SSH_ORIGINAL_COMMAND``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = self._privilege_separation()
        for name in ("host", "user", "stranger"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)], check=True
            )
        shutil.copy(folder / "user.pub", folder / "authorized")
        self.board = folder / "board.sh"
        self.port = _free_port()
        ways = "ListenAddress 127.0.0.1\n" + ("ListenAddress ::1\n" if has_ipv6() else "")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\n{ways}HostKey {folder / 'host'}\nPidFile {folder / 'pid'}\n"
            f"AuthorizedKeysFile {folder / 'authorized'}\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nForceCommand {self.board}\n"
        )
        self.known = folder / "known_hosts"
        self.know((folder / "host.pub").read_text())
        self.config("user")
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [_which("sshd"), "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "log")],
            stdin=subprocess.DEVNULL,
        )
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"sshd does not start: {(self.folder / 'log').read_text()}")

    def stop(self) -> None:
        self.cut()
        if self.process:
            self.process.terminate()
            self.process.wait(60)
        if self.made:
            with contextlib.suppress(OSError):
                Path("/run/sshd").rmdir()

    def cut(self) -> None:
        """Break every connection there is, as a board does that loses its power; the server stays."""
        if self.process and self.process.poll() is None:
            for each in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if each.name() in ("sshd", "sshd-session"):
                        each.kill()

    def runs(self, *command: str) -> None:
        """What a login gets: ``command`` with the wish of the client as one more argument."""
        self.board.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$SSH_ORIGINAL_COMMAND"\n')
        self.board.chmod(0o755)

    def know(self, *keys: str) -> None:
        """The host keys that the client has known, under all names of this machine."""
        names = ",".join(f"[{name}]:{self.port}" for name in ("127.0.0.1", "localhost", "::1", "behind"))
        self.known.write_text("".join(f"{names} {key.strip()}\n" for key in keys))

    def config(self, key: str, key_on_the_way: str = "user") -> str:
        """A client's command, with this key and nothing of the user's own. The host ``behind`` is reached by a jump."""
        path = self.folder / "ssh_config"
        here = f"HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n  HostKeyAlias"
        path.write_text(
            f"Host behind\n  {here} [behind]:{self.port}\n  ProxyJump gate\n"
            f"Host gate\n  {here} [localhost]:{self.port}\n  IdentityFile {self.folder / key_on_the_way}\n"
            f"Host * !gate\n  IdentityFile {self.folder / key}\nHost *\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {self.known}\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking ask\n"
        )
        return f"ssh -F {shlex.quote(str(path))}"

    @property
    def address(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1:{self.port}"

    @staticmethod
    def _privilege_separation() -> bool:
        """As root, sshd wants an empty folder that Debian's service makes. Whether it was made here."""
        if os.getuid() or Path("/run/sshd").exists():
            return False
        Path("/run/sshd").mkdir(mode=0o755)
        return True


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def processes_naming(text: str) -> list[str]:
    """The command lines of processes in which ``text`` occurs."""
    found = []
    for each in psutil.process_iter(["cmdline"]):
        line = " ".join(each.info["cmdline"] or ())
        if text in line and each.pid != os.getpid():
            found.append(line)
    return found
