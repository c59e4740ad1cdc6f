"""Weights for networks that ship without training: made from a seed, with activations as in a trained network.

Every layer's output has about unit variance, and the logits differ from picture to picture, so that comparing two
engines on them means something. The answers themselves do not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from deploylab.models.mobilenet_v2 import InvertedResidual
from deploylab.models.resnet import BasicBlock

SEED = 20_241_123
_PICTURES = 8
_RESIDUAL_GAIN = 0.1


@torch.no_grad()
def fill(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Overwrite all parameters and batch-norm statistics of ``model``, whose last linear layer gives the logits.

    Weights are normal with variance 2 / fan-in (He et al. 2015, https://arxiv.org/abs/1502.01852). Deep networks with
    purely random weights blow up the smallest rounding error; so spatial filters get a common sign, as smoothing
    filters have, and residual branches a small gain. Batch-norm statistics are those of eight smooth random pictures,
    and the last layer is scaled and shifted so that over these pictures every logit has mean 0 and all logits together
    have standard deviation 1.
    """
    rng = np.random.default_rng(SEED)  # NumPy's numbers are the same everywhere; torch's depend on the vector unit
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.copy_(torch.from_numpy(_weights(rng, tuple(module.weight.shape))))
            if module.bias is not None:
                module.bias.zero_()
    for norm in _residual_norms(model):
        norm.weight.fill_(_RESIDUAL_GAIN)
    pictures = torch.from_numpy(smooth_pictures(rng, (_PICTURES, *input_shape[1:])))
    _take_statistics(model, pictures)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    logits = model(pictures)
    scale = 1 / (logits - logits.mean(0)).std()
    head.weight.mul_(scale)
    head.bias.copy_(-logits.mean(0) * scale)


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    if math.prod(shape[2:]) > 1:
        values += np.sign(rng.standard_normal((*shape[:2], 1, 1), np.float32))
    return values * np.float32(math.sqrt(2 / math.prod(shape[1:])))


def _residual_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    inverted = [block.conv[-1] for block in model.modules() if isinstance(block, InvertedResidual) and block.adds_input]
    return inverted + [block.bn2 for block in model.modules() if isinstance(block, BasicBlock)]


def smooth_pictures(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random colour gradients, float32 (N, C, H, W) with about unit variance: more like photographs than noise is."""
    count, channels, height, width = shape
    coarse = torch.from_numpy(rng.standard_normal((count, channels, 6, 6), np.float32))
    fine = torch.from_numpy(rng.standard_normal((count, channels, height // 4, width // 4), np.float32))
    parts = [nn.functional.interpolate(part, (height, width), mode="bilinear") for part in (coarse, fine)]
    return (1.2 * parts[0] + 0.5 * parts[1]).numpy()


def _take_statistics(model: nn.Module, pictures: torch.Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    customary = [norm.momentum for norm in norms]
    model.train()
    for dropout in dropouts:
        dropout.eval()
    for norm in norms:
        norm.momentum = 1.0  # take this batch's statistics as they are
    model(pictures)
    for norm, momentum in zip(norms, customary, strict=True):
        norm.momentum = momentum
    model.eval()
