"""PyTorch as it trained the model: the reference every other engine is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploylab.engines import _torch
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec

if TYPE_CHECKING:
    import torch


class Eager(Engine):
    name = "eager"
    title = "PyTorch eager"
    accepts = frozenset({"torch"})
    distributions = ("torch",)
    runtime_packages = ("torch",)
    modules = ("torch",)

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        found = _torch.specs(source, example)
        _torch.save_module(source, example, folder)
        return found

    @staticmethod
    def module(artifact: Artifact) -> torch.nn.Module:
        """The module itself in eval mode, in any process that can import its class."""
        return _torch.load_module(artifact)[0]

    def _load(self, artifact: Artifact, threads: int) -> Session:
        module, runs = _torch.load_module(artifact)
        return _EagerSession(artifact, threads, module, runs)


class _EagerSession(_torch.TorchSession):
    def __init__(self, artifact: Artifact, threads: int, module: Any, runs: str) -> None:
        super().__init__(artifact, threads, module)
        self._runs = runs

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "runs": self._runs}
