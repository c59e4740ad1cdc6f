"""MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381, table 2).

The modules are nested so that parameters have torchvision's names and shapes: its weights load as they are.
"""

from __future__ import annotations

import torch
from torch import nn

# expansion t, output channels c, repeats n, stride s of the first repeat
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvNormAct(nn.Sequential):
    """Convolution (no bias), batch norm, ReLU6. Keeps the size for stride 1, halves it for stride 2."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand 1x1, filter each channel 3x3, project 1x1 without activation; add the input where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.adds_input = stride == 1 and channels_in == channels_out
        expand = [ConvNormAct(channels_in, hidden, kernel=1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            ConvNormAct(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.adds_input else self.conv(x)


class MobileNetV2(nn.Module):
    """(B, 3, H, W) float32, normalised RGB, to (B, classes) logits. H and W are 224 in the paper."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNormAct(3, 32, stride=2)]
        channels = 32
        for expansion, channels_out, repeats, first_stride in BLOCKS:
            for repeat in range(repeats):
                layers.append(InvertedResidual(channels, channels_out, 1 if repeat else first_stride, expansion))
                channels = channels_out
        layers.append(ConvNormAct(channels, 1280, kernel=1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
