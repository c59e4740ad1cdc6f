"""The graders of lab 40, graded: they name each planted mistake."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploylab.checks import lab40 as check
from graders import solutions, verdict

right = solutions("40_raspberry_pi")


def parts(wheel):
    return wheel.removesuffix(".whl").split("-")[-3:]


def exact_python(wheel, python, glibc):
    return right.installs(wheel, python, glibc) and parts(wheel)[0] in (f"cp{python.replace('.', '')}", "py3")


def exact_glibc(wheel, python, glibc):
    platform = parts(wheel)[2]
    return right.installs(wheel, python, glibc) and (platform == "any" or f"_2_{glibc}_" in platform)


def any_glibc(wheel, python, glibc):
    return right.installs(wheel, python, 99)


def any_python(wheel, python, glibc):
    return "aarch64" in wheel and right.installs(wheel.replace("cp313-cp313", "cp311-cp311"), python, glibc)


def as_text(wheel, python, glibc):
    """Compares versions as texts: "39" is larger than "310"."""
    tag, abi, _ = parts(wheel)
    if abi == "abi3" and tag.removeprefix("cp") > python.replace(".", ""):
        return False
    return right.installs(wheel, python, glibc)


def without_2014(wheel, python, glibc):
    return "manylinux2014" not in wheel and right.installs(wheel, python, glibc)


def any_arm(wheel, python, glibc):
    return right.installs(wheel.replace("linux_armv7l", "linux_aarch64"), python, glibc)


def musl(wheel, python, glibc):
    return right.installs(wheel.replace("musllinux_1_2", "manylinux_2_17"), python, glibc)


def last_tag(wheel, python, glibc):
    tags = parts(wheel)
    return right.installs("x-1-" + "-".join([tags[0], tags[1], tags[2].split(".")[-1]]) + ".whl", python, glibc)


def abi3_backwards(wheel, python, glibc):
    return right.installs(wheel.replace("cp313-abi3", "cp310-abi3"), python, glibc)


WRONG_INSTALLS = [
    (lambda *_: True, "cp313 means CPython 3.13, and only that"),
    (any_python, "cp313 means"),
    (lambda *wheel: right.installs(wheel[0].replace("x86_64", "aarch64"), *wheel[1:]), "x86_64 is not an Arm"),
    (any_arm, "armv7l is 32-bit Arm"),
    (any_glibc, "needs glibc 2.35, this one is older"),
    (exact_glibc, "Everything fits"),
    (without_2014, "old name of glibc 2.17"),
    (musl, "another C library"),
    (last_tag, "one that fits is enough"),
    (lambda *wheel: "-any" not in wheel[0] and right.installs(*wheel), "pure Python"),
    (exact_python, "py2.py3 names two"),
    (lambda *wheel: "abi3" not in wheel[0] and right.installs(*wheel), "abi3 is the stable interface"),
    (abi3_backwards, "abi3 does not run on an older Python"),
    (as_text, "Compare versions as numbers"),
    (lambda *wheel: "-linux_" not in wheel[0] and right.installs(*wheel), "builds for itself"),
    (lambda *wheel: "yes" if right.installs(*wheel) else "no", "Return True or False, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_INSTALLS)
def test_installs_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.installs, wrong)


@given(
    python=st.sampled_from(["3.9", "3.10", "3.11", "3.13"]),
    glibc=st.integers(17, 45),
    pythons=st.lists(st.sampled_from(["py2", "py3", "cp39", "cp310", "cp311", "cp313"]), min_size=1, max_size=2),
    abi=st.sampled_from(["none", "abi3", "same"]),
    platforms=st.lists(
        st.sampled_from(["any", "linux_aarch64", "linux_armv7l", "manylinux2014_aarch64", "manylinux_2_28_aarch64"]),
        min_size=1,
        max_size=2,
    ),
)
def test_the_solution_agrees_with_pip(python, glibc, pythons, abi, platforms):
    if abi != "none":  # as makers of wheels do: compiled code names its CPython and its platform
        pythons = [tag for tag in pythons if tag.startswith("cp")][:1] or ["cp311"]
        platforms = [tag for tag in platforms if tag != "any"] or ["linux_aarch64"]
    else:
        pythons = [tag for tag in pythons if tag.startswith("py")] or ["py3"]
    abi = pythons[0] if abi == "same" else abi
    wheel = f"thing-1.0-{'.'.join(pythons)}-{abi}-{'.'.join(platforms)}.whl"
    assert right.installs(wheel, python, glibc) == check._accepted(wheel, python, glibc), wheel


def features_of(cpuinfo):
    return [line.split(":")[1] for line in cpuinfo.splitlines() if line.startswith("Features")]


def kernels(features):
    return {kernel for kernel, feature in right.NEEDS.items() if feature in features}


def first_core(cpuinfo):
    found = features_of(cpuinfo)
    return kernels(found[0].split()) if found else set()


def last_core(cpuinfo):
    found = features_of(cpuinfo)
    return kernels(found[-1].split()) if found else set()


def any_core(cpuinfo):
    return kernels(" ".join(features_of(cpuinfo)).split())


def anywhere(cpuinfo):
    return right.runnable(cpuinfo) or kernels(cpuinfo.split())


def parts_of_words(cpuinfo):
    found = features_of(cpuinfo)
    return {kernel for kernel, feature in right.NEEDS.items() if found and all(feature in each for each in found)}


def scalar_halves(cpuinfo):
    return right.runnable(cpuinfo.replace("fphp", "fphp asimdhp"))


WRONG_RUNNABLE = [
    (lambda cpuinfo: set(right.NEEDS), "On a Raspberry Pi 4: you say compiler, fp16, int8, neon, scalar"),
    (lambda cpuinfo: right.runnable(cpuinfo) - {"int8"}, "On a Raspberry Pi 5"),
    (first_core, "its first four have more features"),
    (last_core, "its last four have more features"),
    (any_core, "only what all of them have counts"),
    (anywhere, "has no line `Features`"),
    (lambda cpuinfo: right.runnable(cpuinfo) or {"scalar"}, "has no line `Features`"),
    (parts_of_words, "Compare whole words"),
    (scalar_halves, "fphp is about single numbers"),
    (lambda cpuinfo: right.runnable(cpuinfo) | {"sve"}, "There is no kernel sve"),
    (lambda cpuinfo: ", ".join(right.runnable(cpuinfo)), "Return a set of names, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_RUNNABLE)
def test_runnable_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.runnable, wrong)


WRONG_BUDGET = [
    (lambda window_s, rate, agree: window_s / agree, "there is one period more"),
    (lambda window_s, rate, agree: window_s / (agree + 1), "the loop waits for the camera"),
    (lambda window_s, rate, agree: window_s - agree / rate, "the period is the latency itself"),
    (lambda window_s, rate, agree: 1000 * right.latency_budget(window_s, rate, agree), "in milliseconds"),
    (lambda window_s, rate, agree: 1 / rate, "Keeping up with the camera is not asked for"),
    (
        lambda window_s, rate, agree: right.latency_budget(window_s, rate, agree) or window_s - agree / rate,
        "No answer takes a negative time",
    ),
    (lambda window_s, rate, agree: window_s, "after agree periods and one latency"),
    (lambda window_s, rate, agree: str(window_s), "Return a number of seconds, not str"),
]


@pytest.mark.parametrize(("wrong", "hint"), WRONG_BUDGET)
def test_latency_budget_names_the_mistake(capsys, wrong, hint):
    assert hint in verdict(capsys, check.latency_budget, wrong)


def last_answer(latency, rate, agree, offset):
    """When the answer to the ``agree``-th picture is there, if the sign is readable from ``offset`` seconds after the
    loop took a picture on. The loop takes the newest picture when it is done, or waits for the next."""
    period = max(latency, 1 / rate)
    taken = [number * period for number in range(1, agree + 2) if number * period >= offset]
    return taken[agree - 1] + latency - offset


@pytest.mark.parametrize(("window_s", "rate", "agree"), [(1.2, 30, 4), (0.4, 30, 4), (0.15, 30, 4), (3.0, 2, 3)])
def test_the_budget_is_what_a_simulated_loop_needs(window_s, rate, agree):
    latency = right.latency_budget(window_s, rate, agree)
    offsets = np.linspace(1e-9, 1e-6, 5)  # just missed: the worst case
    assert all(last_answer(0.999 * latency, rate, agree, offset) <= window_s for offset in offsets)
    assert any(last_answer(1.001 * latency, rate, agree, offset) > window_s for offset in offsets)
