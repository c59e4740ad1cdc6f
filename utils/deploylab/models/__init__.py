"""The networks of the course and their weights. ``load("signnet")`` gives one ready to run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploylab import image, paths
from deploylab.errors import ModelError

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "signnet": ("deploylab.models.signnet", "SignNet"),
    "mobilenet_v2": ("deploylab.models.mobilenet_v2", "MobileNetV2"),
    "resnet18": ("deploylab.models.resnet", "ResNet18"),
}
_PREPROCESSORS = {"signnet": image.SIGNNET, "mobilenet_v2": image.IMAGENET, "resnet18": image.IMAGENET}


@dataclass(frozen=True)
class ModelInfo:
    """What one needs to feed a model and to read its answer. ``labels`` is None where the weights mean nothing."""

    name: str
    input_shape: tuple[int, int, int, int]
    labels: tuple[str, ...] | None
    checkpoint: Path | None
    preprocessor: image.Preprocessor


def names() -> list[str]:
    """The models of the course, the one that is trained for its task first."""
    return list(_CLASSES)


def info(name: str) -> ModelInfo:
    """What is known about a model without loading it. Raises :class:`ModelError` for an unknown name."""
    _require_known(name)
    preprocessor = _PREPROCESSORS[name]
    shape = (1, 3, preprocessor.size, preprocessor.size)
    if name != "signnet":
        return ModelInfo(name, shape, None, None, preprocessor)
    from deploylab.signs import CLASSES

    return ModelInfo(name, shape, tuple(CLASSES), paths.datasets() / "models" / "signnet.safetensors", preprocessor)


def load(name: str, weights: Path | str | None = None) -> torch.nn.Module:
    """The model in eval mode.

    ``signnet`` has the trained weights of the course, checked against their SHA-256. ``mobilenet_v2`` and ``resnet18``
    have weights made up from a fixed seed: right for measuring time and parity, meaningless as answers. ``weights``
    is a state dict of your own with torchvision's parameter names, ``.safetensors`` or ``.pth``/``.pt``.
    Raises :class:`ModelError` for an unknown name and for a missing, damaged or foreign checkpoint.
    """
    from deploylab.models import made_up

    _require_known(name)
    model = _build(name)
    if weights is not None:
        _fill(model, _read_state(Path(weights)), Path(weights))
    elif name == "signnet":
        checkpoint = verify(name)
        _fill(model, _read_state(checkpoint), checkpoint)
    else:
        made_up.fill(model, info(name).input_shape)
    return model.eval()


def verify(name: str) -> Path:
    """The shipped checkpoint of a model, after comparing it with its SHA-256. Raises :class:`ModelError`."""
    checkpoint = info(name).checkpoint
    if checkpoint is None:
        raise ModelError(f"{name} ships without a checkpoint; its weights are made up from a seed")
    _check_hash(checkpoint)
    return checkpoint


def _require_known(name: str) -> None:
    if name not in _CLASSES:
        raise ModelError(f"unknown model {name!r}; there are: {', '.join(_CLASSES)}")


def _build(name: str) -> torch.nn.Module:
    import importlib

    module, kind = _CLASSES[name]
    try:
        return getattr(importlib.import_module(module), kind)()
    except ModuleNotFoundError as error:
        raise ModelError(f"cannot build {name}: {error}; run `make lab` to repair the installation") from error


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and unpickler each have their own
        raise ModelError(f"checkpoint {path} is damaged or not a state dict: {error}") from error
    if not isinstance(state, dict):
        raise ModelError(f"checkpoint {path} holds a {type(state).__name__}, expected a state dict (name -> tensor)")
    return state


def _fill(model: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"checkpoint {path} does not fit {type(model).__name__}: {error}") from error


def _check_hash(checkpoint: Path) -> None:
    card = checkpoint.with_suffix(".json")
    repair = "restore it with: git checkout -- datasets/models"
    if not checkpoint.is_file() or not card.is_file():
        raise ModelError(f"{checkpoint} or its card {card.name} is missing; {repair}")
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{card} is damaged ({error}); {repair}") from error
    got = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    if got != expected:
        raise ModelError(
            f"{checkpoint} is damaged: its SHA-256 is {got[:12]}..., expected {expected[:12]}...; {repair}"
        )
