"""What DeployLab says about the machine, on this one and on others that are described by files."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from deploylab import doctor, engines, machine


@pytest.fixture
def described(monkeypatch):
    """Let the machine module read these texts instead of the system's files."""

    def describe(architecture: str = "x86_64", **files: str) -> None:
        texts = {name.replace("__", "/"): text for name, text in files.items()}
        monkeypatch.setattr(machine, "_read", lambda path: texts.get(path.strip("/"), ""))
        monkeypatch.setattr(machine, "architecture", lambda: architecture)
        monkeypatch.setattr(machine.sys, "platform", "linux")
        for cached in (machine.features, machine.cpu_model, machine._cpuinfo):
            cached.cache_clear()

    yield describe
    monkeypatch.undo()
    for cached in (machine.features, machine.cpu_model, machine._cpuinfo):
        cached.cache_clear()


PI_5 = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


def test_a_raspberry_pi(described):
    described("aarch64", proc__cpuinfo=PI_5, **{"proc__device-tree__model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    assert machine.features() == ("asimd", "asimdhp", "fphp", "asimddp")
    assert machine.cpu_model() == "Arm Cortex-A76"
    assert machine.board() == "Raspberry Pi 5 Model B Rev 1.0"


def test_a_server(described):
    described(
        proc__cpuinfo="model name\t: Some CPU\nflags\t\t: sse4_2 avx2 fma avx512f avx512_vnni nonsense amx_int8\n"
    )
    assert machine.features() == ("sse4_2", "avx2", "fma", "avx512f", "avx512_vnni", "amx_int8")
    assert machine.cpu_model() == "Some CPU"
    assert machine.board() is None
    assert machine.governor() is None


def test_a_machine_that_tells_nothing(described, monkeypatch):
    described("riscv64")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(machine.platform, "freedesktop_os_release", lambda: {}[0])
    facts = machine.describe()
    assert facts["features"] == []
    assert facts["usable_cores"] == 1
    json.dumps(facts)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("junk", 8)],
)
def test_a_containers_quota_limits_the_cores(described, monkeypatch, quota, cores):
    described(**{"sys__fs__cgroup__cpu.max": quota})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_affinity_limits_the_cores():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from deploylab import machine; print(machine.usable_cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"


def test_the_id_is_stable_and_tells_machines_apart(described):
    described(proc__cpuinfo="model name\t: A\n")
    first = machine.describe()["id"]
    assert machine.describe()["id"] == first
    described(proc__cpuinfo="model name\t: B\n")
    assert machine.describe()["id"] != first


@pytest.fixture(scope="module")
def report():
    return doctor.examine()


def test_the_doctor_knows_every_engine(report):
    assert [finding.name for finding in report.engines] == engines.names()
    assert all(finding.ok and finding.detail for finding in report.engines if finding.core), report.engines
    names = {finding.name for finding in report.tools}
    assert {"gcc", "g++", "clang", "cmake", "nvcc", "chromium", "firefox", "docker", "NVIDIA GPU"} <= names


def test_the_report_is_json_and_a_page(report, capsys):
    told = json.loads(report.to_json())
    assert told["core_ok"] == report.core_ok
    assert told["machine"]["usable_cores"] == machine.usable_cores()
    assert {"engines", "task", "tools", "version"} <= set(told)
    doctor.show(report)
    page = capsys.readouterr().out
    assert "onnxruntime" in page
    assert report.machine["cpu"] in page


def test_only_the_core_decides(report):
    fine = dataclasses.replace(report, engines=(doctor.Finding("a", True, core=True),), task=())
    assert fine.core_ok
    assert dataclasses.replace(fine, tools=(doctor.Finding("b", False),)).core_ok
    assert dataclasses.replace(fine, engines=(doctor.Finding("extra", False),)).core_ok
    broken = dataclasses.replace(fine, engines=(doctor.Finding("a", False, "gone", "pip install a", core=True),))
    assert not broken.core_ok


def test_a_package_that_does_not_start_is_found():
    assert doctor._trial_import(("json",)) == ""
    assert "no_such_module" in doctor._trial_import(("no_such_module",))


def test_a_damaged_task_is_a_finding():
    def look() -> str:
        raise OSError("the disk is gone")

    finding = doctor._task_finding("weights", look)
    assert (finding.ok, finding.core, finding.detail) == (False, True, "the disk is gone")


def test_run_returns_the_exit_code(report, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert doctor.run(as_json=True) == (0 if report.core_ok else 1)
    json.loads(capsys.readouterr().out)
    monkeypatch.setattr(
        doctor, "examine", lambda: dataclasses.replace(report, task=(doctor.Finding("x", False, core=True),))
    )
    assert doctor.run() == 1
    assert "does not work: x" in " ".join(capsys.readouterr().out.split())
