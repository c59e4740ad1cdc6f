"""The bootstrap script: real virtual environments of a tiny project, installed from wheels packed out of this one."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import setup_env
from setup_env import Environment, SetupError

TOOLS = Path(setup_env.__file__).parent
PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tiny"
version = "0"
dependencies = ["packaging"]
optional-dependencies = { dev = ["iniconfig"], mobile = ["a-package-that-is-not-there"] }

[tool.setuptools]
packages = []
"""


def pack_wheel(name: str, folder: Path) -> None:
    """A wheel of an installed distribution, so that installing needs no network."""
    distribution = importlib.metadata.distribution(name)
    stem = f"{name}-{distribution.version}"
    tag = next(line[5:] for line in distribution.read_text("WHEEL").splitlines() if line.startswith("Tag: "))
    record = []
    with zipfile.ZipFile(folder / f"{stem}-{tag}.whl", "w") as wheel:
        for file in distribution.files:
            if "__pycache__" in file.parts or file.name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                continue
            target = f"{stem}.data/scripts/{file.name}" if ".." in file.parts else file.as_posix()
            content = file.locate().read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            record.append(f"{target},sha256={digest},{len(content)}")
            entry = zipfile.ZipInfo(target)
            entry.external_attr = file.locate().stat().st_mode << 16
            wheel.writestr(entry, content)
        own = next(file.parent.name for file in distribution.files if file.name == "METADATA")
        wheel.writestr(f"{own}/RECORD", "\n".join([*record, f"{own}/RECORD,,"]) + "\n")


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheelhouse")
    for name in ("uv", "setuptools", "packaging", "iniconfig"):
        pack_wheel(name, folder)
    return folder


@pytest.fixture
def offline(wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's settings as on a machine without a network and with a folder of wheels."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")  # nothing may ask it
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return wheelhouse


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    versions = {name: importlib.metadata.version(name) for name in ("uv", "packaging", "iniconfig")}
    (folder / "constraints.txt").write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    return folder


def has(environment: Environment, module: str) -> bool:
    return subprocess.run([environment.python, "-c", f"import {module}"], stderr=subprocess.DEVNULL).returncode == 0


def test_first_run_installs_later_runs_do_nothing_and_a_missing_wheel_loses_nothing(project, offline, capsys):
    environment = Environment(project)
    environment.ensure()
    assert has(environment, "packaging")
    assert not has(environment, "iniconfig")

    capsys.readouterr()
    before = environment.stamp.stat().st_mtime_ns
    Environment(project).ensure()
    assert capsys.readouterr().out == ""
    assert environment.stamp.stat().st_mtime_ns == before

    environment.ensure(["dev"])
    assert has(environment, "iniconfig")

    with pytest.raises(SetupError, match="Installing the packages"):
        environment.ensure(["mobile"])
    assert environment.is_current(["dev"])

    moved = project.rename(project.with_name("moved"))
    assert Environment(moved).reason_to_recreate() == "the checkout was moved"
    assert not Environment(moved).is_current([])


def start_set_up(project: Path) -> subprocess.Popen:
    code = f"import setup_env; setup_env.Environment({str(project)!r}).ensure()"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_an_installation_killed_half_way_is_repaired_by_the_next_run_and_a_third_waits(project, offline):
    victim = start_set_up(project)
    environment = Environment(project)
    deadline = time.monotonic() + 60
    while not environment.python.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.kill()
    victim.communicate()
    assert not environment.is_current([])
    assert environment.reason_to_recreate() == "an installation was interrupted"

    both = [start_set_up(project), start_set_up(project)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted("an installation was interrupted" in output for output in outputs) == [False, True]
    assert environment.is_current([])
    assert has(environment, "packaging")


def test_a_virtual_environment_whose_python_is_gone_is_rebuilt(project):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    environment = Environment(project)
    assert environment.reason_to_recreate() is None
    environment.python.unlink()
    environment.python.symlink_to("/nowhere/python3")
    assert environment.reason_to_recreate() == "its Python does not run"


def test_an_index_that_does_not_answer_is_named_with_the_ways_out(project, offline, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(SetupError) as caught:
        Environment(project).ensure()
    for way_out in ("HTTPS_PROXY", "PIP_INDEX_URL", "PIP_NO_INDEX=1 PIP_FIND_LINKS="):
        assert way_out in str(caught.value)
    assert Environment(project).reason_to_recreate() is None  # nothing was half installed: no need to start afresh


def test_a_python_without_ensurepip_is_told_what_to_install(project, tmp_path, monkeypatch):
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "ensurepip.py").write_text('raise ImportError("No module named ensurepip")\n')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))
    with pytest.raises(SetupError, match=r"sudo apt install python3\.\d+-venv"):
        Environment(project).ensure()
    assert not (project / ".venv").exists()


def old_python() -> str | None:
    names = ["python3.9", "python3.8", "python3.7", "python3.6", "python2.7", "python2"]
    pyenv = sorted(Path.home().glob(".pyenv/versions/*/bin/python"))
    for candidate in [shutil.which(name) for name in names] + [str(path) for path in pyenv]:
        facts = setup_env.probe(candidate) if candidate else None
        if facts and setup_env.objection(facts):
            return candidate
    return None


def test_a_wrong_python_is_refused_before_anything_is_removed(project):
    old = old_python()
    if old is None:
        pytest.skip("no Python older than 3.10 on this machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", project / ".venv"], check=True)
    with pytest.raises(SetupError, match=r"needs a 64-bit CPython 3\.10 to 3\.13, but .* is Python"):
        Environment(project, asked_python=old).ensure()
    assert Environment(project).python.exists()


@pytest.mark.parametrize(
    ("facts", "objection"),
    [
        ({"version": [3, 9, 18], "bits": 64, "implementation": "cpython"}, "is Python 3.9.18"),
        ({"version": [3, 14, 0], "bits": 64, "implementation": "cpython"}, "is Python 3.14.0"),
        ({"version": [3, 12, 1], "bits": 32, "implementation": "cpython"}, "is a 32-bit Python"),
        ({"version": [3, 11, 9], "bits": 64, "implementation": "pypy"}, "is pypy, not CPython"),
        ({"version": [3, 10, 0], "bits": 64, "implementation": "cpython"}, None),
        ({"version": [3, 13, 9], "bits": 64, "implementation": "cpython"}, None),
    ],
)
def test_which_pythons_will_do(facts, objection):
    assert setup_env.objection(facts) == objection


def test_a_python_that_is_not_there_is_named():
    with pytest.raises(SetupError, match="/nowhere/python3 does not run"):
        setup_env.find_python("/nowhere/python3")


def test_a_small_disk_is_refused_with_both_numbers(project, tmp_path):
    """On a real file system of 4 MB, in a mount namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    mount = 'mount -t tmpfs -o size=4m none "$0" && cp "$1"/* "$0" && shift && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, small, project]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this machine does not permit `unshare -rm`")
    code = f"import setup_env; setup_env.Environment({str(small)!r}).ensure()"
    done = subprocess.run([*inside, sys.executable, "-c", code], cwd=TOOLS, capture_output=True, text=True)
    assert done.returncode != 0
    assert "0.0 GB free, the installation needs about 2 GB" in done.stderr


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("error: failed to write: No space left on device (os error 28)", "disk"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk"),
        ("error: Permission denied (os error 13)", "permission"),
        ("invalid peer certificate: UnknownIssuer", "certificate"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] ...", "certificate"),
        ("error: error sending request for url: dns error", "index"),
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...): Connection refused'", "index"),
        ("  x No solution found when resolving dependencies", "version"),
        ("Segmentation fault", ""),
    ],
)
def test_what_a_tool_says_becomes_advice(output, cause):
    assert setup_env.cause_of(output) == cause
    assert setup_env.ADVICE[cause]


def test_pip_settings_come_from_its_files_and_its_variables(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example/simple\ntimeout = 5\n[install]\nno-index = true\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_TIMEOUT", "7")
    settings = setup_env.pip_settings(sys.executable)
    assert settings["index-url"] == "https://mirror.example/simple"
    assert settings["no-index"] == "true"
    assert settings["timeout"] == "7"


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, {}),
        ({"index-url": "https://a.example"}, {}, {"UV_DEFAULT_INDEX": "https://a.example"}),
        ({"index-url": "https://a.example"}, {"UV_DEFAULT_INDEX": "u"}, {"UV_DEFAULT_INDEX": "u"}),
        ({"index-url": "https://a.example"}, {"UV_INDEX_URL": "u"}, {"UV_INDEX_URL": "u"}),
        (
            {"extra-index-url": "https://a.example\nhttps://b.example"},
            {},
            {"UV_INDEX": "https://a.example https://b.example", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ({"find-links": "https://a.example /nowhere/wheels"}, {}, {"UV_FIND_LINKS": "https://a.example"}),
        ({"find-links": f"{TOOLS} {TOOLS}"}, {}, {"UV_FIND_LINKS": f"{TOOLS},{TOOLS}"}),
        ({"cert": "/c.pem"}, {}, {"SSL_CERT_FILE": "/c.pem"}),
        ({"cert": "/c.pem"}, {"SSL_CERT_FILE": "/own.pem"}, {"SSL_CERT_FILE": "/own.pem"}),
        ({"proxy": "http://p:1"}, {}, {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:1"}),
        ({"trusted-host": "a.example"}, {}, {"UV_INSECURE_HOST": "a.example"}),
        ({"default-timeout": "180"}, {}, {"UV_HTTP_TIMEOUT": "180"}),
    ],
)
def test_uv_gets_pips_settings_but_the_users_own_come_first(settings, environ, expected):
    assert setup_env.uv_environment(settings, environ) == {**expected, "UV_PYTHON_DOWNLOADS": "never"}


def test_the_script_reads_on_an_old_python():
    ast.parse(Path(setup_env.__file__).read_text(), feature_version=(3, 7))


def test_make_knows_every_command():
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    for command in setup_env.COMMANDS:
        done = subprocess.run(["make", "-n", command], cwd=setup_env.ROOT, capture_output=True, text=True)
        assert f"tools/setup_env.py  {command}" in done.stdout.replace("\\\n", ""), done.stdout + done.stderr
    overview = subprocess.run(["make"], cwd=setup_env.ROOT, capture_output=True, text=True).stdout
    assert [command for command in setup_env.COMMANDS if command not in overview] == []
