"""The busy neighbour comes, works and goes, whatever happens in the block."""

from __future__ import annotations

import psutil
import pytest

from deploylab.bench.neighbour import busy_neighbour


def children():
    return [child for child in psutil.Process().children(recursive=True) if "monotonic" in " ".join(child.cmdline())]


def test_the_neighbour_is_there_during_the_block_only():
    assert children() == []
    with busy_neighbour(2, at_most_seconds=20):
        assert len(children()) == 2
    assert children() == []


def test_the_neighbour_goes_when_the_block_fails():
    with pytest.raises(ZeroDivisionError), busy_neighbour(1, at_most_seconds=20):
        _ = 1 / 0
    assert children() == []
