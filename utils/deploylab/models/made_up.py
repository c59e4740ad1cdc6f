"""Weights for networks that ship without training: made from a seed, with activations as in a trained network.

Every layer's output has about unit variance, and the logits differ from picture to picture, so that comparing two
engines on them means something. The answers themselves do not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

SEED = 20_241_123
_PICTURES = 8


@torch.no_grad()
def fill(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Overwrite all parameters and batch-norm statistics of ``model``, whose last linear layer gives the logits.

    Weights are normal with variance 2 / fan-in (He et al. 2015, https://arxiv.org/abs/1502.01852). Batch-norm
    statistics are those of eight smooth random pictures, and the last layer is scaled and shifted so that over these
    pictures every logit has mean 0 and all logits together have standard deviation 1.
    """
    rng = np.random.default_rng(SEED)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # NumPy's generator gives the same numbers on every machine; torch's depends on the vector unit.
            fan_in = math.prod(module.weight.shape[1:])
            values = rng.standard_normal(tuple(module.weight.shape), np.float32) * np.float32(math.sqrt(2 / fan_in))
            module.weight.copy_(torch.from_numpy(values))
            if module.bias is not None:
                module.bias.zero_()
    pictures = torch.from_numpy(smooth_pictures(rng, (_PICTURES, *input_shape[1:])))
    _take_statistics(model, pictures)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    logits = model(pictures)
    scale = 1 / (logits - logits.mean(0)).std()
    head.weight.mul_(scale)
    head.bias.copy_(-logits.mean(0) * scale)


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
