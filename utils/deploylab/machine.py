"""Facts about this machine that a measurement depends on. Nothing here raises on an unknown platform."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

# What inference engines choose their kernels by; the names are those of /proc/cpuinfo.
_FEATURES = {
    "x86_64": (
        "sse4_2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avx_vnni",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "amx_fp16",
    ),
    "aarch64": ("asimd", "asimdhp", "fphp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme"),
    "armv7l": ("neon", "vfpv4"),
}
_OTHER_NAMES = {"AMD64": "x86_64", "arm64": "aarch64"}


def usable_cores() -> int:
    """How many cores this process can keep busy: its CPU affinity, further limited by a container's CPU quota."""
    # macOS and Windows have no sched_getaffinity
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def architecture() -> str:
    """``x86_64``, ``aarch64``, ... with the names macOS and Windows use brought to these."""
    return _OTHER_NAMES.get(platform.machine(), platform.machine())


@functools.cache
def features() -> tuple[str, ...]:
    """The vector and matrix instructions of this CPU that inference engines use; empty where they cannot be read."""
    if sys.platform == "darwin":
        return _mac_features()
    listed = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    return tuple(name for name in _FEATURES.get(architecture(), ()) if name in listed)


@functools.cache
def cpu_model() -> str:
    """The CPU's name for a person, ``unknown`` where the system does not tell."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or "unknown"
    named = _cpuinfo("model name") or _cpuinfo("Model") or _arm_part() or platform.processor()
    return named or "unknown"


def board() -> str | None:
    """The board's model as its device tree says ("Raspberry Pi 5 Model B Rev 1.0"), None on other machines."""
    text = _read("/proc/device-tree/model") or _read("/sys/firmware/devicetree/base/model")
    return text.strip("\0 \n") or None


def memory_bytes() -> int | None:
    """Installed memory, limited by a container's limit; None if unknown."""
    try:
        import psutil

        total = psutil.virtual_memory().total
    except Exception:  # psutil is missing on a bare board
        match = re.search(r"MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
        total = int(match[1]) * 1024 if match else None
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if total is not None and limit.isdigit():
        return min(total, int(limit))
    return total


def governor() -> str | None:
    """How the first core chooses its clock (``performance``, ``ondemand``, ...), None if the system does not tell."""
    return _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None


def load() -> float | None:
    """How many processes want to run, averaged over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows
        return None


def describe() -> dict[str, Any]:
    """Everything above in one dictionary, with ``id``: a short hash that is equal for equal machines and systems."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "architecture": architecture(),
        "features": list(features()),
        "usable_cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "board": board(),
        "governor": governor(),
        "system": _system(),
        "python": platform.python_version(),
    }
    stable = {key: value for key, value in facts.items() if key != "governor"}
    facts["id"] = hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:12]
    return facts


def _system() -> str:
    with contextlib.suppress(Exception):
        if sys.platform == "linux":
            return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"
    return f"{platform.system()} {platform.release()}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def _cpuinfo(key: str) -> str:
    """The first value of ``key`` in /proc/cpuinfo, or an empty text."""
    match = re.search(rf"^{re.escape(key)}\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match[1].strip() if match else ""


# Main ID register: implementer 0x41 is Arm; part numbers from the cores' technical reference manuals.
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}


def _arm_part() -> str:
    if _cpuinfo("CPU implementer") != "0x41":
        return ""
    part = _cpuinfo("CPU part")
    return f"Arm {_ARM_PARTS.get(part, f'part {part}')}"


def _cgroup_quota() -> float | None:
    """Cores granted by the container's CPU quota (cgroup v2, else v1), None if there is none."""
    limit = _read("/sys/fs/cgroup/cpu.max").split()
    if not limit:
        limit = [_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{part}_us").strip() for part in ("quota", "period")]
    try:
        quota, period = float(limit[0]), float(limit[1])
    except (ValueError, IndexError):  # "max": no limit
        return None
    return quota / period if quota > 0 and period > 0 else None


def _mac_features() -> tuple[str, ...]:
    if architecture() == "x86_64":
        listed = _sysctl("machdep.cpu.features").lower() + " " + _sysctl("machdep.cpu.leaf7_features").lower()
        listed = listed.replace("avx1.0", "avx").replace("sse4.2", "sse4_2")
        return tuple(name for name in _FEATURES["x86_64"] if name in listed.split())
    names = {"FEAT_FP16": "asimdhp", "FEAT_DotProd": "asimddp", "FEAT_BF16": "bf16", "FEAT_I8MM": "i8mm"}
    return ("asimd", *(name for key, name in names.items() if _sysctl(f"hw.optional.arm.{key}") == "1"))


def _sysctl(key: str) -> str:
    try:
        return subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
