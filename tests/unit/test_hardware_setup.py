"""hardware/*/setup.sh and install.py: what they detect, what they do, and that they do it once."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploylab import engines, packages, paths
from deploylab.boards import emulator
from deploylab.errors import BoardError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boards run Linux")
HARDWARE = paths.root() / "hardware"
SCRIPTS = {name: HARDWARE / name / "setup.sh" for name in ("raspberry-pi", "jetson")}
spec = importlib.util.spec_from_file_location("hardware_install", HARDWARE / "install.py")
installer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(installer)

MODELS = {
    "Raspberry Pi 3 Model B Plus Rev 1.3": "note: this CPU has no half-precision",
    "Raspberry Pi 4 Model B Rev 1.5": "note: this CPU has no half-precision",
    "Raspberry Pi 5 Model B Rev 1.0": None,
    "Raspberry Pi Zero 2 W Rev 1.0": "note: with 512 MB",
}


class Pretended:
    """A system as the scripts see it: files under ``root``, and programs that note how they are called."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.venv = folder / "root", folder / "bin", folder / "environment"
        self.calls_file = folder / "calls"
        self.calls_file.touch()
        self.bin.mkdir()
        self.file("proc/meminfo", "MemTotal:        4000000 kB\nMemFree:  1 kB\n")
        self.program("uname", "echo aarch64")
        self.program("dpkg", "echo arm64")
        self.program("dpkg-query", "exit 1")
        self.program("sudo", 'exec "$@"')
        self.program("apt-get", "")
        self.program("systemctl", "")

    def file(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.calls_file}"\n{body}\n')
        path.chmod(0o755)

    def calls(self, *names: str) -> list[str]:
        return [line for line in self.calls_file.read_text().splitlines() if line.split()[0] in names]

    def run(self, kind: str, *words: str) -> subprocess.CompletedProcess[str]:
        search = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        settings = {"PATH": search, "DEPLOYLAB_SYSROOT": str(self.root), "PIP_NO_INDEX": "1"}
        where = ("--venv", str(self.venv), "--python", sys.executable)
        return subprocess.run(
            ["sh", SCRIPTS[kind], *where, *words],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def tree(self) -> dict[Path, tuple[int, int]]:
        """Every file but the notes of calls and compiled bytecode, with what changes when it is written."""
        found = (path for folder in (self.root, self.venv) for path in folder.rglob("*"))
        return {
            path: (path.lstat().st_ino, path.lstat().st_mtime_ns)
            for path in found
            if path.suffix != ".pyc" and path.is_file()
        }


@pytest.fixture
def pi(tmp_path):
    system = Pretended(tmp_path)
    system.file("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    system.file("etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_CODENAME=trixie\n')
    return system


@pytest.fixture
def jetson(tmp_path):
    system = Pretended(tmp_path)
    system.file("proc/device-tree/model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    system.file("etc/os-release", 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nVERSION_CODENAME=jammy\n')
    release(system, "36", "4.3")
    return system


def release(system: Pretended, major: str, revision: str) -> None:
    line = f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Wed\n"
    system.file("etc/nv_tegra_release", line + "# KERNEL_VARIANT: oot\n")


def fact(done: subprocess.CompletedProcess[str], name: str) -> str:
    return re.search(rf"^{name}:\s+(.*)$", done.stdout, re.M)[1].strip()


# --- what they detect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_dry_run_knows_the_board_and_changes_nothing(pi, model):
    pi.file("proc/device-tree/model", f"{model}\0")
    if "Zero" in model:
        pi.file("proc/meminfo", "MemTotal:         420000 kB\n")
    before = pi.tree()
    done = pi.run("raspberry-pi", "--dry-run", "--camera", "--runtimes", "ncnn")
    assert done.returncode == 0, done.stderr
    assert fact(done, "board") == model
    assert fact(done, "system") == "Debian GNU/Linux 13 (trixie)"
    assert done.stdout.endswith("Nothing was changed.\n")
    assert (MODELS[model] or "Nothing") in done.stdout
    assert MODELS[model] or "note:" not in done.stdout
    assert pi.tree() == before
    assert not pi.calls("sudo", "apt-get", "systemctl")
    assert not pi.venv.exists()


def table() -> list[dict[str, str]]:
    """The rows of the guide's table of releases, by column."""
    lines = [
        line for line in (HARDWARE / "jetson/README.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_guides_table_of_jetpacks_is_what_the_script_finds(jetson):
    rows = [row for row in table() if re.fullmatch(r"\d+\.\d+(\.\d+)?", row["L4T"])]
    assert {row["JetPack"].split(".")[0] for row in rows} == {"4", "5", "6", "7"}
    for row in rows:
        major, revision = row["L4T"].split(".", 1)
        release(jetson, major, revision)
        done = jetson.run("jetson", "--dry-run")
        assert (fact(done, "L4T"), fact(done, "JetPack")) == (row["L4T"], row["JetPack"]), done.stderr


def test_every_row_of_the_guides_names_its_source():
    for guide in ("jetson", "raspberry-pi"):
        lines = (HARDWARE / guide / "README.md").read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if line.startswith("| ") and "Source" not in line]
        assert rows
        assert not [row for row in rows if "https://" not in row]


def test_a_jetsons_libraries_are_told(jetson):
    jetson.program("dpkg-query", '[ "$3" = libnvinfer10 ] && printf "ii 10.3.0.30-1+cuda12.5"')
    (jetson.root / "usr/local/cuda-12.6").mkdir(parents=True)
    done = jetson.run("jetson", "--dry-run")
    assert (fact(done, "TensorRT"), fact(done, "CUDA")) == ("10.3.0.30", "12.6")
    assert "note:" not in done.stdout


def test_old_and_unknown_releases_are_said(jetson):
    release(jetson, "32", "7.1")
    assert "TensorRT works through trtexec or its own Python 3.6" in jetson.run("jetson", "--dry-run").stdout
    release(jetson, "99", "1.0")
    done = jetson.run("jetson", "--dry-run")
    assert done.returncode == 0
    assert "L4T 99.1.0 is not in the table" in done.stdout
    jetson.file("etc/nv_tegra_release", "something else\n")
    assert fact(jetson.run("jetson", "--dry-run"), "JetPack") == "unknown"


@pytest.mark.parametrize(
    ("kind", "model", "said"),
    [
        ("raspberry-pi", "NVIDIA Jetson Nano Developer Kit\0", "this is no Raspberry Pi"),
        ("raspberry-pi", "", "it has no device tree"),
        ("jetson", "Raspberry Pi 4 Model B Rev 1.5\0", "for a Raspberry Pi there is"),
        ("jetson", "", "neither a device tree nor"),
    ],
)
def test_another_board_is_refused(pi, kind, model, said):
    pi.file("proc/device-tree/model", model)
    done = pi.run(kind, "--dry-run")
    assert done.returncode == 1
    assert said in done.stderr


def test_a_32_bit_system_is_refused(pi):
    pi.program("dpkg", "echo armhf")
    assert "the kernel is 64-bit, the system is not (armhf)" in pi.run("raspberry-pi", "--dry-run").stderr
    pi.program("uname", "echo armv7l")
    assert "this CPU is armv7l" in pi.run("raspberry-pi", "--dry-run").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--colour"], "unknown option --colour"),
        (["--wheels"], "--wheels needs a value"),
        (["--wheels", "no-such-folder"], "no such folder"),
        (["--service", "no-such-artifact"], "no converted model there"),
        (["--python", "no-such-python"], "no such program"),
    ],
)
def test_wrong_options_are_named(pi, words, said):
    done = pi.run("raspberry-pi", *words)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert not pi.venv.exists()


def test_a_python_that_does_not_fit_is_named(pi, tmp_path):
    old = tmp_path / "bin" / "python3.8"
    pi.program("python3.8", "echo 3.8")
    assert f"--python {old} is Python 3.8; 3.10 to 3.13 fit" in pi.run("raspberry-pi", "--python", str(old)).stderr


def test_help_names_every_option():
    text = subprocess.run(["sh", SCRIPTS["jetson"], "--help"], capture_output=True, text=True, check=True).stdout
    read = set(re.findall(r"--[a-z-]+", (HARDWARE / "common.sh").read_text().split("parse()")[1].split("say()")[0]))
    assert read - {"--help"} <= set(re.findall(r"--[a-z-]+", text))


# --- what they do -----------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, version: str, module: str, python: str = ">=3") -> str:
    """A small wheel (PEP 427) that stands for a large one; returns its line for a requirements file."""
    tag, info = "py3-none-any", f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    path = folder / f"{name.replace('-', '_')}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            archive.writestr(file, content)
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


MISSING = f"openvino==1.0 \\\n    --hash=sha256:{'0' * 64}\n"


def test_set_up_twice_from_a_folder_of_wheels(pi, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    lock = tmp_path / "requirements.txt"
    common, ncnn = wheel(wheels, "every-engines-needs", "1.0", "needs"), wheel(wheels, "ncnn", "1.0", "ncnn")
    lock.write_text("# a comment\n" + common + ncnn + MISSING)
    words = ("--wheels", str(wheels), "--requirements", str(lock), "--runtimes", "ncnn,openvino")

    first = pi.run("raspberry-pi", *words)
    assert first.returncode == 0, first.stderr
    assert "openvino: left out; the package index has no wheel of it for this Python" in first.stderr
    assert "ncnn: works, version 1.0" in first.stdout
    assert "openvino: not installed" in first.stdout
    assert first.stdout.endswith("Done.\n")
    where = [str(pi.venv / "bin/python"), "-c", "import deploylab, needs; print(deploylab.__file__)"]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(where, capture_output=True, text=True, check=True, env=outside, cwd=tmp_path).stdout
    assert said.startswith(str(paths.root() / "utils"))

    before = pi.tree()
    second = pi.run("raspberry-pi", *words)
    assert second.returncode == 0, second.stderr
    assert "ncnn: installed already" in second.stdout
    assert pi.tree() == before
    assert not pi.calls("sudo", "apt-get", "systemctl")

    lock.write_text(common + wheel(wheels, "ncnn", "2.0", "ncnn"))
    assert "ncnn: works, version 2.0" in pi.run("raspberry-pi", *words).stdout

    tampered = re.sub(r"sha256:\w+", "sha256:" + "0" * 64, wheel(wheels, "every-engines-needs", "2.0", "needs"))
    lock.write_text(tampered + ncnn)
    before = pi.tree()
    refused = pi.run("raspberry-pi", *words)
    assert refused.returncode == 1
    assert "cannot install what all need" in refused.stderr
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert pi.tree() == before


def test_only_missing_packages_are_installed(pi):
    pi.program("dpkg-query", '[ "$3" != rpicam-apps ] && printf "ii 1.0"')
    ready(pi)
    assert pi.run("raspberry-pi", "--camera").returncode == 0
    assert pi.calls("apt-get") == ["apt-get install --yes --no-install-recommends rpicam-apps"]
    pi.program("dpkg-query", 'printf "ii 1.0"')
    done = pi.run("raspberry-pi", "--camera")
    assert len(pi.calls("apt-get")) == 1
    assert "packages: all there (rpicam-apps" in done.stdout


def test_an_environment_of_jetpacks_python_sees_its_tensorrt(jetson):
    jetson.program("dpkg-query", '[ "$3" = libnvinfer10 ] && printf "ii 10.3.0.30-1+cuda12.5"')
    ready(jetson)
    assert "no Python 3.10 package here" in jetson.run("jetson").stdout
    bindings = jetson.root / "usr/lib/python3.10/dist-packages/tensorrt"
    bindings.mkdir(parents=True)
    link = jetson.venv / "lib/python3.10/site-packages/tensorrt"
    link.parent.mkdir(parents=True)
    jetson.run("jetson", "--dry-run")
    assert not link.is_symlink()
    assert jetson.run("jetson").returncode == 0
    assert link.resolve() == bindings
    again = jetson.run("jetson")
    assert again.returncode == 0
    assert "tensorrt: linking" not in again.stdout


@pytest.fixture
def artifact(tmp_path):
    folder = tmp_path / "signnet"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def ready(system: Pretended) -> None:
    """An environment that is there already, of Python 3.10."""
    system.venv.joinpath("bin").mkdir(parents=True)
    system.program("python", '[ "$1" != -c ] || echo 3.10')
    shutil.copy(system.bin / "python", system.venv / "bin/python")


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_service_is_written_once_and_systemd_understands_it(request, kind, artifact):
    system = request.getfixturevalue({"raspberry-pi": "pi", "jetson": "jetson"}[kind])
    ready(system)
    unit = system.root / "etc/systemd/system/deploylab-camera.service"
    dry = system.run(kind, "--service", str(artifact), "--dry-run")
    assert not unit.exists()
    assert "Type=notify" in dry.stdout
    done = system.run(kind, "--service", str(artifact), "--source", "v4l2:/dev/video1")
    assert done.returncode == 0, done.stderr
    text = unit.read_text()
    program = f'"{system.venv}/bin/python" "{HARDWARE}/classify.py" "{artifact}" "--source=v4l2:/dev/video1"'
    assert f"ExecStart={program}\n" in text
    assert "WatchdogSec=30\n" in text
    before = unit.stat().st_mtime_ns
    again = system.run(kind, "--service", str(artifact), "--source", "v4l2:/dev/video1")
    assert "is up to date" in again.stdout
    assert unit.stat().st_mtime_ns == before
    if not shutil.which("systemd-analyze"):
        pytest.skip("written as expected; there is no systemd-analyze to ask what it thinks of it")
    verdict = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=120)
    assert "deploylab-camera.service" not in verdict.stderr, verdict.stderr


def test_a_service_in_a_folder_that_systemd_would_misread_is_refused(pi, tmp_path):
    odd = tmp_path / "100%"
    odd.mkdir()
    (odd / "manifest.json").touch()
    ready(pi)
    done = pi.run("raspberry-pi", "--service", str(odd))
    assert done.returncode == 1
    assert "may not contain quotes, %" in done.stderr
    assert not (pi.root / "etc/systemd").exists()


# --- install.py -------------------------------------------------------------------------------------------------------


def test_the_runtimes_are_those_the_engines_need_and_the_lock_brings():
    groups = installer.groups((HARDWARE / "requirements.txt").read_text(encoding="utf-8"))
    assert set(groups) == {installer.COMMON, *installer.RUNTIMES}
    pinned = {packages.plain(name) for name in re.findall(r"^([\w.-]+)==", "".join(groups.values()), re.M)}
    assert pinned == {
        packages.plain(name) for name in re.findall(r"^([\w.-]+)==", (HARDWARE / "requirements.txt").read_text(), re.M)
    }
    needed = {packages.plain(name) for each in engines.names() for name in engines.get(each).runtime_packages}
    assert set(installer.RUNTIMES) <= needed


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "CRASHES on import: illegal instruction"),
        ("raise SystemExit(132)", "CRASHES on import: illegal instruction"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "CRASHES on import: SIGSEGV"),
        ("raise OSError('libX.so: cannot open shared object file')", "fails: OSError: libX.so"),
        ("import no_such_module", "not installed"),
        ("print('a greeting'); print('1.2')", "works, version 1.2"),
    ],
)
def test_what_importing_a_runtime_shows_is_named(program, verdict):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert installer._verdict(done).startswith(verdict)


def test_nothing_is_installed_outside_an_environment(monkeypatch, capsys):
    monkeypatch.setattr(installer.sys, "base_prefix", installer.sys.prefix)
    monkeypatch.setattr(installer.sys, "argv", ["install.py"])
    assert installer.main() == 1
    assert "virtual environment only" in capsys.readouterr().err


# --- the shell itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*SCRIPTS.values(), HARDWARE / "common.sh"], ids=lambda path: path.parent.name)
def test_shellcheck_has_nothing_to_say(path):
    assert subprocess.run(["sh", "-n", path]).returncode == 0
    if not shutil.which("shellcheck"):
        pytest.skip("there is no shellcheck")
    done = subprocess.run(["shellcheck", "-x", path], cwd=paths.root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- on an emulated board ---------------------------------------------------------------------------------------------


def on_board(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    try:
        board = emulator.find(name)
    except BoardError as error:
        pytest.skip(str(error))
    return subprocess.run(board.shell("/bin/sh", *words), capture_output=True, text=True, timeout=300)


def test_an_emulated_pi_is_detected():
    done = on_board("pi4", str(SCRIPTS["raspberry-pi"]), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert fact(done, "board") == "Raspberry Pi 4 Model B (emulated)"
    assert "note: this CPU has no half-precision" in done.stdout
    assert "Nothing was changed." in done.stdout


def test_on_an_emulated_jetson_a_runtime_is_tried():
    done = on_board("orin", str(SCRIPTS["jetson"]), "--check", "--runtimes", "ncnn")
    assert done.returncode == 0, done.stderr
    assert fact(done, "board") == "NVIDIA Jetson Orin (emulated)"
    assert re.search(r"^ncnn: works, version \d", done.stdout, re.M)
