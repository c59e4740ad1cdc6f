"""The part of a remote comparison that runs on the board: sent as text over SSH, it needs nothing but Python itself.

``guard`` lives as long as the connection and ends with it: it answers what the board is, keeps a folder for this run,
and stops every worker and removes that folder when its input ends or is silent for too long. ``receive`` unpacks a tar
archive from its input. Both take their order as JSON and answer in one line. Standard library and Python 3.6 only, so
that an old system can say what it is.
"""

import contextlib
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
DAY_S = 86400.0


def main(order):
    """Do what ``order`` says under ``do``. The exit code :data:`TOO_OLD` asks for another Python."""
    if sys.version_info < tuple(order.get("least", ())):
        sys.exit(TOO_OLD)
    {"guard": guard, "receive": receive}[order["do"]](order)


def guard(order):
    """Answer what the board is, then wait: ``lease_s`` seconds without a sign of life end the run."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        folder = _folder()
        others = _sweep(folder, order["lease_s"])
        run = os.path.join(folder, "runs", f"{os.getpid()}-{int(time.time()):x}")
        os.makedirs(os.path.join(run, "pids"))
    except OSError as error:
        return _answer(error=f"cannot write to {error.filename}: {error.strerror}")
    try:
        _answer(**dict(_survey(order, folder), folder=folder, run=run, others=others))
        while select.select([0], [], [], order["lease_s"])[0] and os.read(0, 4096):
            os.utime(run)
    finally:
        _stop(run)
        shutil.rmtree(run, ignore_errors=True)


def receive(order):
    """Unpack a tar archive from the input into the folder ``to``, which appears complete or not at all."""
    target = order["to"]
    draft = f"{target}.unfinished-{os.getpid()}"
    try:
        if not os.path.isdir(target):
            os.makedirs(draft)
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
                archive.extractall(draft, **safely)
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
    }


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


def _sweep(folder, lease_s):
    """Remove what runs left behind that could not clean up (a power cut). Returns how many others are under way."""
    runs = os.path.join(folder, "runs")
    os.makedirs(runs, exist_ok=True)
    others = 0
    for name in os.listdir(runs):
        path = os.path.join(runs, name)
        age = time.time() - os.stat(path).st_mtime
        if age > DAY_S:
            shutil.rmtree(path, ignore_errors=True)
        others += age < lease_s
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if ".unfinished-" in name and time.time() - os.stat(path).st_mtime > DAY_S:
            shutil.rmtree(path, ignore_errors=True)
    return others


def _stop(run):
    """End the workers of this run, with all that they started: each has a file named after its process."""
    for name in os.listdir(os.path.join(run, "pids")):
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
