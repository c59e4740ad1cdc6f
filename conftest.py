"""Seen by every test run: which labs are skipped, what starts first, hypothesis without a clock, Ctrl-C that works."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tools"))

with contextlib.suppress(ImportError):
    from hypothesis import settings

    # No deadline, which a busy machine misses, and the same examples in every run, so that `make test` says the same
    # twice. `pytest --hypothesis-profile=default` looks for new ones.
    settings.load_profile("ci")

# A shell that starts `make test` in the background lets all that it starts ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

COVERAGE = "tests/unit/test_bench_coverage.py::test_no_cell_is_worse_than_in_the_table"
ALONE = (
    *(f"{COVERAGE}[{engine}]" for engine in ("tvm", "torch-compile", "executorch", "litert")),
    "tests/unit/test_bundle.py::test_a_bundle_installs_on_an_emulated_pi_without_a_network",
)
"""Tests that take as long as others' modules and share no work with their neighbours."""
SLOWEST = (
    "tests/unit/test_no_network.py",
    *ALONE,
    "tests/unit/test_bench_coverage.py",
    "tests/unit/test_engines_hard_cases.py",
    "tests/unit/test_boards_remote.py",
    "tests/unit/test_boards_matrix.py",
    "tests/unit/test_bench_isolation.py",
    "tests/unit/test_serving_server.py",
    "tests/unit/test_engines_tvm.py",
    "tests/unit/test_engines_contract.py",
    "tests/labs/test_graph_passes.py",
    "tests/unit/test_setup_environment.py",
    "tests/unit/test_bundle.py",
    "tests/unit/test_serving_hostile.py",
    "tests/unit/test_web_app.py",
    "tests/unit/test_hardware_setup.py",
    "tests/unit/test_bench_compare.py",
    "tests/unit/test_boards_places.py",
    "tests/unit/test_serving_cluster.py",
    "labs/05_",
    "labs/26_",
    "labs/01_",
    "labs/00_",
    "labs/40_",
    "labs/41_",
)
"""What takes longest, by the beginning of a test's id: started first, it does not end long after all the rest."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_labs_that_lack_something(items)
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: rank(item.nodeid))


def skip_labs_that_lack_something(items: list[pytest.Item]) -> None:
    """nbval skips a lab whose metadata asks for an extra or hardware that is not there."""
    from lab_contract import reasons_to_skip

    for item in items:
        notebook = getattr(item.parent, "nb", None)
        if notebook is not None:
            for reason in reasons_to_skip(notebook.metadata.get("deploylab", {})):
                item.add_marker(pytest.mark.skip(reason=reason))


def rank(test: str) -> int:
    return next((place for place, start in enumerate(SLOWEST) if test.startswith(start)), len(SLOWEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """``--dist loadscope``, but the tests that stand alone are not bound to their module's process."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid in ALONE else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # the workers did
    return Scheduler(config, log)
