"""Bundles: made, interrupted, verified, refused, and installed where there is no network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from test_hardware_setup import wheel
from test_setup_environment import pack_wheel
from typer.testing import CliRunner

from deploylab import paths
from deploylab.boards import emulator, index
from deploylab.bundle import build, manifest, targets, wheels
from deploylab.bundle.build import Plan
from deploylab.cli import app
from deploylab.errors import BoardError, BundleError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bundles are installed on Linux")
ROOT = paths.root()
SCRIPT = ROOT / "hardware" / "bundle" / "install.sh"
PYTHON = "{}.{}".format(*sys.version_info)
LATER = f"{PYTHON}.98"
"""A release that needs another version of a package than the Python that runs the tests."""
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module", autouse=True)
def no_index() -> Iterator[None]:
    """pip and uv find no package but those in a folder that a test names."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
            patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("UV_DEFAULT_INDEX", f"{NOWHERE}/simple")
        yield


def fetched(name: str, python: str) -> Path:
    """The wheels that `make test` fetched for a target."""
    folder = ROOT / ".envs" / "bundles" / name
    try:
        there = python in manifest.read(folder)["pythons"]
    except BundleError:
        there = False
    if not there:
        pytest.skip(f"`make test` fetches the packages of this test; it did not for Python {python}, or could not")
    return folder / "wheels"


def made(name: str, folder: Path, python: str, light: bool = False) -> Path:
    """A bundle with ncnn for one version of Python, of wheels that an interrupted run left behind."""
    shutil.copytree(
        fetched(name, python), folder.with_name(f"{folder.name}.unfinished") / "wheels", copy_function=build._link
    )
    build.build(Plan(targets.find(name, [python], light), folder, ("ncnn",)))
    return folder


def cut_off(*command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run without a network: in a namespace without an interface, or where that is not permitted with no way to any."""
    alone = ["unshare", "--map-root-user", "--net"]
    permitted = shutil.which("unshare") and not subprocess.run([*alone, "true"], stderr=subprocess.DEVNULL).returncode
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "https_proxy": NOWHERE, "http_proxy": NOWHERE}
    words = [*(alone if permitted else []), *command]
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=500, stdin=subprocess.DEVNULL)


# --- installed without a network --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A light bundle for this machine, in a folder with a blank."""
    if os.uname().machine != "x86_64":
        pytest.skip("the bundle for this machine is for x86-64")
    return made("x86_64", tmp_path_factory.mktemp("a stick") / "bundle", PYTHON, light=True)


@pytest.fixture(scope="module")
def installed(here, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("at home")
    done = cut_off("sh", str(here / "install.sh"), "--python", sys.executable, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return here, home, done


def test_a_bundle_installs_here_without_a_network(installed):
    _, home, done = installed
    assert "signnet-ncnn-fp32: stop\n" in done.stdout
    there = home / "deploylab"
    worker = "import ncnn, deploylab, numpy; print(ncnn.__file__, deploylab.__file__, numpy.__file__, sep='\\n')"
    said = cut_off(str(there / ".venv-board/bin/python"), "-c", worker, home=home).stdout.splitlines()
    assert all(line.startswith(str(there)) for line in said)
    assert len(said) == 3
    assert [path.name for path in home.iterdir() if path.name[0] != "."] == ["deploylab"]


def test_what_a_learner_changed_stays_when_the_bundle_is_installed_again(installed):
    here, home, _ = installed
    notebook = home / "deploylab/labs/00_start_here.ipynb"
    notebook.write_text("mine")
    again = cut_off("sh", str(here / "install.sh"), "--python", sys.executable, home=home)
    assert again.returncode == 0, again.stderr
    assert "is there" in again.stdout
    assert "environment:" not in again.stdout
    assert notebook.read_text() == "mine"


def test_a_bundle_installs_on_an_emulated_pi_without_a_network(tmp_path):
    try:
        board = emulator.find("pi4")
    except BoardError as error:
        pytest.skip(str(error))
    python = (board.folder / "usr/bin/python3").resolve().name.removeprefix("python")
    bundle = made("aarch64-pi", tmp_path / "bundle", python)
    command = board.shell("/bin/sh", str(bundle / "install.sh"), "--to", str(tmp_path / "pi"))
    root = command.index("-r")
    done = cut_off(*command[:root], "-b", str(tmp_path), *command[root:], home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Python {python}, aarch64" in done.stdout
    assert "signnet-ncnn-fp32: stop\n" in done.stdout
    assert (tmp_path / f"pi/.venv-board/lib/python{python}/site-packages/ncnn").is_dir()


PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tiny"
version = "0"
dependencies = ["packaging"]
optional-dependencies = { dev = ["iniconfig"], mobile = ["a-package-that-is-not-there"] }

[tool.setuptools.packages.find]
where = ["utils"]
"""


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A tiny course whose packages lie in a folder, which is all that pip and uv can see."""
    root, wheelhouse = tmp_path / "course", tmp_path / "wheelhouse"
    wheelhouse.mkdir()
    names = ("uv", "setuptools", "packaging", "iniconfig", "pip")
    for name in names:
        pack_wheel(name, wheelhouse)
    pip = next(wheelhouse.glob("pip-*"))
    pins = {name: f"{name}=={metadata.version(name)}" for name in names}
    wheel(wheelhouse, "packaging", "99", "packaging", python=f">={LATER}")
    constraints = [
        f"{pins['packaging']} ; python_full_version < '{LATER}'",
        f"packaging==99 ; python_full_version >= '{LATER}'",
        *(pins[name] for name in ("uv", "setuptools", "iniconfig")),
    ]
    files = {
        "pyproject.toml": PYPROJECT,
        "constraints.txt": "\n".join(constraints) + "\n",
        "hardware/requirements.txt": "",
        "hardware/bundle/requirements.txt": f"{pins['pip']} --hash=sha256:{manifest.sha256(pip)}\n",
        "utils/deploylab/cli.py": "import packaging, iniconfig, sys; print('the doctor of', sys.prefix)\n",
        "tools/setup_env.py": (ROOT / "tools/setup_env.py").read_text(encoding="utf-8"),
        **{f"hardware/bundle/{name}": (SCRIPT.parent / name).read_text() for name in ("install.sh", "README.md")},
    }
    for name, text in files.items():
        build._write(root / name, text)
    for words in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *words], cwd=root, check=True)
    monkeypatch.setenv("DEPLOYLAB_HOME", str(root))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    return root


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the bundle with the course is for x86-64")
def test_a_course_installs_as_make_does_it(course, tmp_path):
    bundle, to = tmp_path / "a stick" / "bundle", tmp_path / "my course"
    with pytest.raises(BundleError, match=r"(?s)cannot be resolved.*a-package-that-is-not-there"):
        build.build(Plan(targets.find("x86_64"), bundle, extras=("mobile",)))
    found = build.build(Plan(targets.find("x86_64", [PYTHON]), bundle))
    locked = (bundle / "requirements" / f"{PYTHON}.txt").read_text()
    assert f"packaging==99 ; python_full_version >= '{LATER}' --hash=" in locked
    assert (found["contents"], found["extras"], found["artifacts"]) == ("course", ["dev"], [])
    words = ("--to", str(to), "--python", sys.executable)
    done = cut_off("sh", str(bundle / "install.sh"), *words, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the doctor of {to / '.venv'}\n" in done.stdout
    stamp = json.loads((to / ".venv/deploylab-installed.json").read_text())
    assert stamp["extras"] == ["dev"]
    assert not (to / "wheelhouse").is_symlink()
    again = cut_off("sh", str(bundle / "install.sh"), *words, home=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Installing" not in again.stdout


# --- made -------------------------------------------------------------------------------------------------------------


def test_a_bundle_has_all_and_says_what(here):
    found = manifest.read(here)
    names = {each["path"] for each in found["files"]}
    tracked = subprocess.run(
        ["git", "ls-files", "datasets"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {f"course/{name}" for name in tracked.splitlines()} == {n for n in names if n.startswith("course/datasets/")}
    assert {"course/Makefile", "course/labs/00_start_here.ipynb", "course/utils/deploylab/cli.py"} <= names
    assert not [name for name in names if name.startswith(("course/.git/", "course/.venv/", "course/build/"))]
    assert found["artifacts"] == ["signnet-ncnn-fp32"]
    assert "artifacts/signnet-ncnn-fp32/manifest.json" in names
    assert (found["target"], found["pythons"], found["contents"]) == ("x86_64", [PYTHON], "runtimes")
    assert found["installed_bytes"] > sum(each["bytes"] for each in found["files"] if each["path"].endswith(".whl"))
    locked = (here / "requirements" / f"{PYTHON}.txt").read_text()
    carried = {each["sha256"] for each in found["files"] if each["path"].endswith(".whl")}
    assert set(re.findall(r"--hash=sha256:(\w+)$", locked, re.M)) == carried
    versions = dict(re.findall(r"^(\S+)==(\S+) ", locked, re.M))
    pinned = {pin.name: pin.version for pin in index.pins() if pin.holds(PYTHON)}
    assert versions.pop("pip")
    assert versions.items() <= pinned.items()
    assert {"ncnn", "numpy", "pillow"} <= set(versions)
    assert not {"torch", "onnxruntime", "openvino"} & set(versions)


def test_what_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    folder, draft = tmp_path / "bundle", tmp_path / "bundle.unfinished"
    plan = Plan(targets.find("aarch64-pi", ["3.13"]), folder, ("ncnn",))
    source = fetched("aarch64-pi", "3.13")
    shutil.copytree(source, draft / "wheels", copy_function=build._link)
    (draft / "wheels" / "tqdm-broken.whl").write_text("half")
    removed = [each for name in ("idna", "tqdm") for each in (draft / "wheels").glob(f"{name}-*-any.whl")]
    for path in removed:
        path.unlink()
    before = {path.name: path.stat().st_ino for path in (draft / "wheels").iterdir()}
    with pytest.raises(BundleError, match=r"no wheel of idna==\S+ for Python 3.13 on aarch64 with glibc 2.36"):
        build.build(plan)
    assert not folder.exists()
    assert before.items() <= {path.name: path.stat().st_ino for path in (draft / "wheels").iterdir()}.items()

    asked = []
    download = index.download
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    monkeypatch.setattr(
        index, "download", lambda file, *rest, **of: (asked.append(file.read_text()), download(file, *rest, **of))
    )
    build.build(plan)
    assert len(asked) == 1
    assert re.findall(r"^(\S+)==", asked[0], re.M) == ["idna", "tqdm"]
    assert not draft.exists()
    assert manifest.verify(folder) == []
    assert not list((folder / "wheels").glob("*cp311*"))  # of another Python
    assert not list((folder / "wheels").glob("*broken*"))


def test_an_index_that_is_not_reached_is_told_from_a_wheel_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOWHERE}/simple")
    pins = [pin for pin in index.pins() if pin.name == "idna"]
    with pytest.raises(BoardError, match="the package index was not reached; is there a network"):
        wheels.fetch(pins, tmp_path, targets.find("aarch64-pi"), "3.11")


def test_a_bundle_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    manifest.write(small(folder), {})
    manifest_before = (folder / "manifest.json").read_bytes()
    monkeypatch.setattr(build, "_fill", lambda draft, *rest: build._write(draft / "half", "") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build.build(Plan(targets.find("x86_64", light=True), folder))
    assert manifest.verify(folder) == []
    monkeypatch.setattr(build, "_fill", lambda draft, *rest: {"pythons": []})
    build.build(Plan(targets.find("x86_64", light=True), folder))
    assert (folder / "half").exists()
    assert (folder / "manifest.json").read_bytes() != manifest_before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "toaster"], "no target 'toaster'; there are: aarch64-jetpack6"),
        (["--target", "aarch64-pi", "--python", "3.9"], "--python 3.9: there are packages for 3.10"),
        (["--target", "aarch64-pi", "--engines", "eager"], "a bundle has models for litert, mnn, ncnn"),
        ([], "give --target (aarch64-jetpack6, aarch64-pi, x86_64), or --verify FOLDER"),
        (
            ["--target", "aarch64-pi", "--to", str(ROOT / "labs")],
            "is no bundle: it has no manifest.json; nothing there",
        ),
        (["--verify", str(ROOT / "labs")], "is no bundle"),
        (["--verify", "no-such-folder"], "no such folder"),
    ],
)
def test_what_cannot_be_is_said(words, said):
    done = CliRunner().invoke(app, ["bundle", *words])
    assert done.exit_code == 1
    assert said in done.output.replace("\n", " ")


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 5 * 10**7))
    with pytest.raises(BundleError, match=r"has 0.1 GB free, the bundle needs about 0.3 GB more.*--to"):
        build.build(Plan(targets.find("aarch64-pi", ["3.11"]), tmp_path / "bundle", ("ncnn",)))


# --- verified ---------------------------------------------------------------------------------------------------------


def small(folder: Path) -> Path:
    for name in ("course/a file", "wheels/b", "c"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: None, []),
        (lambda folder: (folder / "course/a file").write_text("a FILE"), ["course/a file: has 6 bytes instead of 13"]),
        (lambda folder: (folder / "c").write_text("d"), ["c: its SHA-256 differs"]),
        (lambda folder: (folder / "wheels/b").unlink(), ["wheels/b: missing"]),
        (lambda folder: (folder / "wheels/x").touch(), ["wheels/x: not in the manifest"]),
        (lambda folder: (folder / "SHA256SUMS").unlink(), ["SHA256SUMS: does not agree with manifest.json"]),
    ],
)
def test_every_kind_of_damage_is_named(tmp_path, spoil, said):
    manifest.write(small(tmp_path / "bundle"), {})
    spoil(tmp_path / "bundle")
    assert manifest.verify(tmp_path / "bundle") == said


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": [{"path": 1}]}', '{"format": 99, "files": []}'])
def test_a_manifest_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        manifest.verify(tmp_path)


def test_verify_ends_with_the_verdict(here, tmp_path):
    good = CliRunner().invoke(app, ["bundle", "--verify", str(here)])
    assert (good.exit_code, "whole: " in good.output) == (0, True)
    damaged = tmp_path / "damaged"
    manifest.write(small(damaged), {})
    (damaged / "c").unlink()
    bad = CliRunner().invoke(app, ["bundle", "--verify", str(damaged)])
    assert bad.exit_code == 1
    assert "is not whole; copy or make it again:\n  c: missing" in bad.output


# --- install.sh -------------------------------------------------------------------------------------------------------

SETTINGS = {"target": "x86_64", "title": "a PC", "machine": os.uname().machine, "glibc": "17", "pythons": PYTHON}
SETTINGS |= {"contents": "runtimes", "extras": "", "needed_mb": "1"}


def script(folder: Path, **settings: str) -> Path:
    """A bundle with nothing but the script."""
    small(folder)
    (folder / "target.sh").write_text("".join(f"{key}='{value}'\n" for key, value in (SETTINGS | settings).items()))
    shutil.copy(SCRIPT, folder)
    manifest.write(folder, {})
    return folder / "install.sh"


def run(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", file, *words], capture_output=True, text=True, timeout=60, cwd=file.parent.parent)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"machine": "riscv128"}, "this bundle is for riscv128 (a PC), this machine is "),
        ({"pythons": "3.99"}, f"packages for Python 3.99, and here {sys.executable} is Python {PYTHON};"),
        ({"glibc": "999"}, "the packages need glibc 2.999 or later, this system has 2."),
        ({"needed_mb": "999999999"}, "MB free, the installation needs about 999999999 MB"),
    ],
)
def test_a_machine_that_does_not_fit_is_refused(tmp_path, settings, said):
    done = run(script(tmp_path / "bundle", **settings), "--to", str(tmp_path / "to"), "--python", sys.executable)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "to").exists()


def test_a_damaged_bundle_is_not_installed(tmp_path):
    file = script(tmp_path / "bundle")
    (tmp_path / "bundle" / "course" / "a file").write_text("something else")
    done = run(file, "--to", str(tmp_path / "to"), "--python", sys.executable)
    assert done.returncode == 1
    assert "damaged or not complete; copy it again" in done.stderr
    assert "course/a file" in done.stdout + done.stderr


@pytest.mark.parametrize(("name", "said"), [("file", "is not empty"), (".deploylab-bundle", "holds another bundle")])
def test_a_folder_that_is_in_use_is_left_alone(tmp_path, name, said):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / name).write_text("mine")
    done = run(script(tmp_path / "bundle"), "--to", "to", "--python", sys.executable)
    assert done.returncode == 1
    assert said in done.stderr
    assert [path.read_text() for path in (tmp_path / "to").iterdir()] == ["mine"]


def test_the_script_says_what_it_takes(tmp_path):
    assert "--to FOLDER" in run(SCRIPT, "--help").stdout
    assert "unknown option --colour" in run(SCRIPT, "--colour").stderr
    assert "--to needs a value" in run(SCRIPT, "--to").stderr


def test_shellcheck_has_nothing_to_say():
    if not shutil.which("shellcheck"):
        pytest.skip("there is no shellcheck")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
