"""Solutions of lab 40: one function per exercise."""

from __future__ import annotations

MANYLINUX2014 = 17
NEEDS = {
    "scalar": "asimd",
    "compiler": "asimd",
    "neon": "asimd",
    "fp16": "asimdhp",
    "int8": "asimddp",
}


def installs(wheel, python, glibc):
    pythons, abis, platforms = (
        part.split(".") for part in wheel.removesuffix(".whl").split("-")[-3:]
    )
    major, minor = map(int, python.split("."))

    def python_fits(tag, abi):
        if tag in (f"py{major}", f"py{major}{minor}"):
            return abi == "none"
        if not tag.startswith(f"cp{major}"):
            return False
        made_for = int(tag.removeprefix(f"cp{major}"))
        return (
            made_for <= minor if abi == "abi3" else made_for == minor and abi in (tag, "none")
        )

    def platform_fits(tag):
        if tag in ("any", "linux_aarch64"):
            return True
        if not tag.startswith("manylinux") or not tag.endswith("_aarch64"):
            return False
        needed = MANYLINUX2014 if tag.startswith("manylinux2014") else int(tag.split("_")[2])
        return needed <= glibc

    return any(python_fits(tag, abi) for tag in pythons for abi in abis) and any(
        map(platform_fits, platforms)
    )


def runnable(cpuinfo):
    cores = [
        line.split(":")[1].split()
        for line in cpuinfo.splitlines()
        if line.startswith("Features")
    ]
    common = set.intersection(*map(set, cores)) if cores else set()
    return {kernel for kernel, feature in NEEDS.items() if feature in common}


def latency_budget(window_s, rate, agree):
    slower_than_the_camera = window_s / (agree + 1)
    if slower_than_the_camera >= 1 / rate:
        return slower_than_the_camera
    return max(0.0, window_s - agree / rate)
