"""SignNet: the course's own network, a small MobileNetV2 for 64x64 road signs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploylab.signs import CLASSES

_STAGES: tuple[tuple[int, int, int, int], ...] = (
    # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (4, 24, 2, 2),
    (4, 40, 3, 2),
    (4, 64, 2, 1),
    (4, 96, 2, 2),
)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a short cut where shapes agree (MobileNetV2, arXiv:1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else [_conv(inputs, hidden, kernel=1)]
        self.layers = nn.Sequential(
            *expand,
            _conv(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.has_short_cut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.has_short_cut else self.layers(x)


class SignNet(nn.Module):
    """RGB images in [0, 1], float32 (B, 3, 64, 64), to logits (B, 16) in the order of ``deploylab.signs.CLASSES``.

    Needs no normalisation outside: the first batch norm sees to it, so that every engine gets the same raw pixels.
    """

    def __init__(self, classes: int = len(CLASSES), dropout: float = 0.2) -> None:
        super().__init__()
        channels = 24
        blocks: list[nn.Module] = [_conv(3, channels, kernel=3, stride=2)]
        for expansion, outputs, count, stride in _STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        head = 320
        self.features = nn.Sequential(*blocks, _conv(channels, head, kernel=1))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x).mean(dim=(2, 3))
        return self.classifier(self.dropout(features))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def example_input(batch: int = 1) -> Tensor:
    """Zeros of the network's input shape."""
    return torch.zeros(batch, 3, 64, 64)
