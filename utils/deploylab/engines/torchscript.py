"""TorchScript: a traced model in a file, run by libtorch without Python.

PyTorch calls it deprecated in favour of ``torch.export``; it is here because deployed systems are full of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploylab.engines import _torch
from deploylab.engines.base import Artifact, Engine, Session, Source, TensorSpec


class TorchScript(Engine):
    name = "torchscript"
    title = "TorchScript"
    accepts = frozenset({"torch"})
    distributions = ("torch",)
    runtime_packages = ("torch",)
    modules = ("torch",)

    def _convert(
        self, source: Source, example: tuple[np.ndarray, ...], folder: Path, precision: str, **options: Any
    ) -> tuple[list[TensorSpec], list[TensorSpec]]:
        import torch

        found = _torch.specs(source, example)
        with _torch.deprecation_expected(), torch.no_grad():
            traced = torch.jit.trace(source, tuple(torch.from_numpy(array.copy()) for array in example))
            frozen = torch.jit.freeze(traced)
            _torch.write(folder / "model.pt", lambda stream: torch.jit.save(frozen, stream))
        return found

    def _load(self, artifact: Artifact, threads: int) -> Session:
        import torch

        with _torch.deprecation_expected():
            frozen = torch.jit.load(str(artifact.file(".pt")), map_location="cpu")
            return _TorchScriptSession(artifact, threads, torch.jit.optimize_for_inference(frozen))


class _TorchScriptSession(_torch.TorchSession):
    def _facts(self) -> dict[str, Any]:
        kinds = [node.kind() for node in self._call.graph.nodes()]
        return {
            **super()._facts(),
            "runs": "frozen graph, optimize_for_inference",
            "nodes": len(kinds),
            "mkldnn_nodes": sum("mkldnn" in kind for kind in kinds),
        }
