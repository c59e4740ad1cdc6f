"""Small operator patterns: what models are made of, one module each, to ask of an engine what it can run.

Each has a few thousand weights at most and comes from everyday networks. The weights are made from a seed, so every
process builds the same module.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from deploylab.errors import ModelError

Sample: TypeAlias = tuple[np.ndarray, ...]
PICTURE = (1, 8, 16, 16)


@dataclass(frozen=True)
class Pattern:
    """A pattern: its name, what it is in words, how to build it, and the shapes of its float32 inputs.

    ``batches`` are the sizes of the batch it is tried with, beside the one of the example that it is converted with.
    ``indices`` makes the only input int64, with values below this number.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = (PICTURE,)
    batches: tuple[int, ...] = ()
    indices: int = 0

    def module(self) -> nn.Module:
        """The module in eval mode, with the same weights in every process."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.build().eval()
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        for name, tensor in module.state_dict().items():  # NumPy's numbers are the same on every machine
            if tensor.is_floating_point():
                positive = name.endswith("running_var")
                values = rng.uniform(0.5 if positive else -0.5, 1.5 if positive else 0.5, tuple(tensor.shape))
                tensor.copy_(torch.from_numpy(values))
        return module

    def sample(self, seed: int = 0, batch: int | None = None) -> Sample:
        """One array per input: normal noise, or random indices."""
        rng = np.random.default_rng(seed)
        shapes = [(batch or shape[0], *shape[1:]) for shape in self.shapes]
        if self.indices:
            return tuple(rng.integers(0, self.indices, shape, dtype=np.int64) for shape in shapes)
        return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)


class _Function(nn.Module):
    """A function of this file, or of torch, as a module."""

    def __init__(self, function: Callable[..., object], **options: object) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(*inputs, **self.options)


class _SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.hardsigmoid(self.excite(F.relu(self.squeeze(self.pool(x)))))


class _Attention(nn.Module):
    """Self-attention with two heads, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).reshape(-1, 10, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 10, 16))


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


class _Classifier(nn.Module):
    """Convolution, batch norm, pooling, linear: the frame of a classifier, for any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu6(self.norm(self.conv(x))).mean((2, 3)))


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.boxes = nn.Conv2d(8, 4, 1)
        self.scores = nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.body(x))
        return self.boxes(x), torch.sigmoid(self.scores(x))


class _RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def _channel_shuffle(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, 2, 4, 16, 16).transpose(1, 2).reshape(-1, 8, 16, 16)


def _focus(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def _resize(x: torch.Tensor, mode: str) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=None if mode == "nearest" else False)


def _sample_grid(x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(x, torch.tanh(grid), align_corners=False)


def _reductions(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.mean((2, 3)), x.amax((2, 3)), torch.linalg.vector_norm(x, dim=(2, 3))], 1)


def _masked(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, x * x - 1)


def _top_3(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.topk(x, 3, -1)
    return values, indices


_TOKENS = ((1, 10, 16),)

_ALL = (
    Pattern("conv_grouped", "grouped convolution", lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4)),
    Pattern("conv_dilated", "dilated convolution", lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2)),
    Pattern("conv_depthwise", "depthwise convolution, stride 2", lambda: nn.Conv2d(8, 8, 5, 2, 2, groups=8)),
    Pattern(
        "conv_transposed",
        "transposed convolution with output padding",
        lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
    ),
    Pattern("conv_1d", "1-D convolution", lambda: nn.Conv1d(8, 6, 5, padding=2), ((1, 8, 40),)),
    Pattern("conv_3d", "3-D convolution", lambda: nn.Conv3d(2, 4, 3, padding=1), ((1, 2, 6, 8, 8),)),
    Pattern("pad_reflect", "reflection padding", lambda: nn.ReflectionPad2d((1, 2, 3, 1))),
    Pattern("max_pool_ceil", "max pooling, sizes rounded up", lambda: nn.MaxPool2d(3, 2, ceil_mode=True)),
    Pattern(
        "avg_pool_padded",
        "average pooling that leaves padding out",
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ),
    Pattern("pool_adaptive", "adaptive average pooling to 3 x 5", lambda: nn.AdaptiveAvgPool2d((3, 5))),
    Pattern("hard_swish", "hard-swish", nn.Hardswish),
    Pattern("gelu", "GELU", nn.GELU),
    Pattern("prelu", "PReLU, one slope a channel", lambda: nn.PReLU(8)),
    Pattern("softmax_channels", "softmax over the channels", lambda: nn.Softmax(1)),
    Pattern("se_block", "squeeze-and-excitation block", _SqueezeExcite),
    Pattern("layer_norm", "layer norm", lambda: nn.LayerNorm(16), _TOKENS),
    Pattern("rms_norm", "RMS norm", _RmsNorm, _TOKENS),
    Pattern("group_norm", "group norm", lambda: nn.GroupNorm(4, 8)),
    Pattern("channel_shuffle", "channel shuffle", lambda: _Function(_channel_shuffle)),
    Pattern("pixel_shuffle", "pixel shuffle", lambda: nn.PixelShuffle(2)),
    Pattern("focus", "strided slices, concatenated (YOLO's focus)", lambda: _Function(_focus)),
    Pattern("resize_nearest", "resize, nearest", lambda: _Function(_resize, mode="nearest")),
    Pattern("resize_bilinear", "resize, bilinear", lambda: _Function(_resize, mode="bilinear")),
    Pattern("grid_sample", "grid sample", lambda: _Function(_sample_grid), ((1, 8, 16, 16), (1, 9, 9, 2))),
    Pattern("attention", "self-attention, two heads", _Attention, _TOKENS),
    Pattern("embedding", "embedding of int64 indices", lambda: nn.Embedding(20, 16), ((1, 10),), indices=20),
    Pattern("lstm", "LSTM over three steps", _Recurrent, ((1, 3, 6),)),
    Pattern("reductions", "mean, maximum and norm over axes", lambda: _Function(_reductions)),
    Pattern("top_k", "top 3: values and int64 indices", lambda: _Function(_top_3), ((1, 12),)),
    Pattern("masked", "a mask from a comparison", lambda: _Function(_masked)),
    Pattern("cumulative_sum", "cumulative sum", lambda: _Function(torch.cumsum, dim=-1), _TOKENS),
    Pattern("multi_output", "two outputs", _TwoHeads),
    Pattern("multi_input", "two inputs, one of them broadcast", lambda: _Function(torch.mul), (PICTURE, (1, 8, 1, 1))),
    Pattern("dynamic_batch", "any batch: classifier tried with 1, 3 and 5", _Classifier, batches=(3, 5)),
)


_BY_NAME = {pattern.name: pattern for pattern in _ALL}


def names() -> list[str]:
    """All patterns, related ones together."""
    return list(_BY_NAME)


def get(name: str) -> Pattern:
    """One pattern. Raises :class:`ModelError` naming the ones there are."""
    if name not in _BY_NAME:
        raise ModelError(f"unknown pattern {name!r}; there are: {', '.join(names())}")
    return _BY_NAME[name]
