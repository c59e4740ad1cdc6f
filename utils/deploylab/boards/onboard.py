"""The part of a remote comparison that runs on the board: sent as text over SSH, it needs nothing but Python itself.

``guard`` lives as long as the connection and ends with it: it answers what the board is, keeps a folder for this run,
and stops every worker and removes that folder when its input ends or is silent for too long. ``receive`` unpacks a tar
archive from its input. Both take their order as JSON and answer in one line. Standard library and Python 3.6 only, so
that an old system can say what it is. What is in use is locked, so that no clock decides what may be removed: a Pi
without a battery starts in the past and jumps.
"""

import contextlib
import fcntl
import json
import os
import platform
import select
import shutil
import signal
import struct
import sys
import tarfile
import time
import zlib

MARK = "deploylab-board:"
TOO_OLD = 75
KEPT_S = 30 * 86400.0
"""For how long code and packages stay on a board that nobody has used."""
_BOOT = "/proc/sys/kernel/random/boot_id"
_L4T = "/etc/nv_tegra_release"
_SENT = ("code-", "runtime-")


def main(order):
    """Do what ``order`` says under ``do``. The exit code :data:`TOO_OLD` asks for another Python."""
    if sys.version_info < tuple(order.get("least", ())):
        sys.exit(TOO_OLD)
    {"guard": guard, "receive": receive}[order["do"]](order)


def guard(order):
    """Answer what the board is, then wait: ``lease_s`` seconds without a sign of life end the run."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    folder = _folder()
    try:
        os.makedirs(os.path.join(folder, "runs"), exist_ok=True)
        with _locked(folder):
            others = _sweep(folder, order["client"])
            run = os.path.join(folder, "runs", f"{os.getpid()}-{order['client']}")
            os.makedirs(os.path.join(run, "pids"))
            _lock(run)
    except OSError as error:
        return _answer(error=f"cannot write to {error.filename or folder}: {error.strerror}")
    try:
        _answer(**dict(_survey(order, folder), folder=folder, run=run, others=others))
        while select.select([0], [], [], order["lease_s"])[0] and os.read(0, 4096):
            pass
    finally:
        _stop(run)
        shutil.rmtree(run, ignore_errors=True)


def receive(order):
    """Unpack a tar archive from the input into the folder ``to``, which appears complete or not at all."""
    target = order["to"]
    draft = f"{target}.unfinished-{os.getpid()}"
    try:
        if not os.path.isdir(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with _locked(os.path.dirname(target)):
                os.makedirs(draft)
                _lock(draft)
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
                archive.extractall(draft, **safely)
            with _locked(os.path.dirname(target)):
                if not os.path.isdir(target):  # else another run was faster
                    os.rename(draft, target)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        free = _free(os.path.dirname(os.path.dirname(target)))
        return _answer(error=getattr(error, "strerror", None) or str(error), free=free)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _answer()


def _survey(order, folder):
    libc = platform.libc_ver()
    return {
        "machine": platform.machine(),
        "bits": 8 * struct.calcsize("P"),
        "system": platform.system(),
        "libc": list(libc),
        "python": platform.python_version(),
        "executable": sys.executable,
        "free": _free(folder),
        "there": sorted(os.listdir(folder)),
        "installed": _installed(order["packages"]),
        "boot": _first_line(_BOOT),
        "l4t": _first_line(_L4T),
    }


def _first_line(path):
    try:
        with open(path) as file:
            return file.readline().strip()
    except (OSError, ValueError):
        return ""


def _installed(names):
    try:
        from importlib import metadata
    except ImportError:  # before Python 3.8
        return {}
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _folder():
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "deploylab", "board")


def _free(folder):
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _sweep(folder, client):
    """Remove what runs that could not clean up have left, and what was not used for long.

    Returns how many runs of others are under way.
    """
    runs = os.path.join(folder, "runs")
    alive = []
    for path in [os.path.join(runs, name) for name in os.listdir(runs)]:
        if _in_use(path):
            alive.append(path)
        else:
            _stop(path)
            shutil.rmtree(path, ignore_errors=True)
    for path in [os.path.join(folder, name) for name in os.listdir(folder)]:
        unfinished = ".unfinished-" in path and not _in_use(path)
        forgotten = not alive and path.split("/")[-1].startswith(_SENT) and _age_s(path) > KEPT_S
        if unfinished or forgotten:
            shutil.rmtree(path, ignore_errors=True)
    return sum(not path.endswith(client) for path in alive)


def _age_s(path):
    return time.time() - os.stat(path).st_mtime


def _lock(path):
    """Lock a folder for as long as this process lives. Raises OSError where another has locked it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _in_use(path):
    try:
        os.close(_lock(path))
    except OSError:
        return True
    return False


@contextlib.contextmanager
def _locked(folder):
    """The folder for this process alone, against others that make or remove something in it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _stop(run):
    """End the workers of this run, with all that they started: each has a file named after its process."""
    pids = os.path.join(run, "pids")
    for name in os.listdir(pids) if os.path.isdir(pids) else ():
        try:
            with open(f"/proc/{name}/cmdline", "rb") as command:
                if run.encode() not in command.read():
                    continue  # the number belongs to another process by now
            group = os.getpgid(int(name))
            os.kill(int(name), signal.SIGKILL) if group == os.getpgrp() else os.killpg(group, signal.SIGKILL)
        except (OSError, ValueError):
            continue


def _answer(**values):
    print(MARK + json.dumps(values), flush=True)
