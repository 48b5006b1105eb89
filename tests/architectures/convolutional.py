"""Classifiers of stacked, branched and grouped convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn

from architectures.blocks import classifier, conv_norm, conv_relu


class PaddedShortcut(nn.Module):
    """Option A of He et al. (CVPR 2016): every second pixel, missing channels filled with zeros."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.fill = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.fill, self.fill))


class BasicBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        padded: bool,
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = norm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = (
                PaddedShortcut(in_channels, out_channels)
                if padded
                else nn.Sequential(
                    nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of two blocks, as for CIFAR (He et al., CVPR 2016)."""

    def __init__(
        self,
        *,
        padded: bool = False,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        softmax: bool = False,
    ) -> None:
        super().__init__()
        widths = (16, 32, 64)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16), nn.ReLU())
        blocks: list[nn.Module] = []
        channels = 16
        for stage, width in enumerate(widths):
            for index in range(2):
                stride = 2 if stage and not index else 1
                blocks.append(BasicBlock(channels, width, stride=stride, padded=padded, norm=norm))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = classifier(channels)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)))
        return F.softmax(logits, dim=1) if self.softmax else logits


def group_norm(channels: int) -> nn.Module:
    """GroupNorm with four groups."""
    return nn.GroupNorm(4, channels)


def instance_norm(channels: int) -> nn.Module:
    """InstanceNorm with scale and shift."""
    return nn.InstanceNorm2d(channels, affine=True)


class Fire(nn.Module):
    def __init__(self, in_channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], dim=1)


def squeezenet() -> nn.Module:
    """Iandola et al. 2016: fire modules, a convolution as classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(32, 8, 32),
        Fire(64, 8, 32),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(64, 16, 64),
        nn.Dropout(0.5),
        nn.Conv2d(128, 10, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class ShuffleUnit(nn.Module):
    """Ma et al., ECCV 2018: split, transform one half, join, shuffle."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        if stride > 1:
            self.left = nn.Sequential(
                conv_norm(in_channels, in_channels, stride=stride, groups=in_channels),
                conv_relu(in_channels, half, kernel=1),
            )
        self.right = nn.Sequential(
            conv_relu(in_channels if stride > 1 else half, half, kernel=1),
            conv_norm(half, half, stride=stride, groups=half),
            conv_relu(half, half, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            joined = torch.cat((self.left(x), self.right(x)), dim=1)
        else:
            one, other = x.chunk(2, dim=1)
            joined = torch.cat((one, self.right(other)), dim=1)
        batch, channels, height, width = joined.size()
        shuffled = joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return shuffled.view(batch, -1, height, width)


def shufflenet_v2() -> nn.Module:
    """Two stages of three units."""
    return nn.Sequential(
        conv_relu(3, 16),
        ShuffleUnit(16, 32, stride=2),
        ShuffleUnit(32, 32, stride=1),
        ShuffleUnit(32, 32, stride=1),
        ShuffleUnit(32, 64, stride=2),
        ShuffleUnit(64, 64, stride=1),
        conv_relu(64, 96, kernel=1),
        classifier(96),
    )


class DenseLayer(nn.Module):
    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], dim=1)


def densenet() -> nn.Module:
    """Huang et al., CVPR 2017: every layer reads all before it; BatchNorm stands in front."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        DenseLayer(16, 12),
        DenseLayer(28, 12),
        DenseLayer(40, 12),
        nn.BatchNorm2d(52),
        nn.ReLU(),
        nn.Conv2d(52, 26, 1, bias=False),
        nn.AvgPool2d(2),
        DenseLayer(26, 12),
        DenseLayer(38, 12),
        nn.BatchNorm2d(50),
        nn.ReLU(),
        classifier(50),
    )


class InceptionBlock(nn.Module):
    """Szegedy et al., CVPR 2015: four branches, joined."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.point = conv_relu(in_channels, width, kernel=1)
        self.three = nn.Sequential(
            conv_relu(in_channels, width // 2, kernel=1), conv_relu(width // 2, width)
        )
        self.five = nn.Sequential(
            conv_relu(in_channels, width // 2, kernel=1),
            nn.Conv2d(width // 2, width, (1, 5), padding=(0, 2)),
            nn.Conv2d(width, width, (5, 1), padding=(2, 0)),
            nn.ReLU(),
        )
        self.pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), conv_relu(in_channels, width, kernel=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.point(x), self.three(x), self.five(x), self.pool(x)], dim=1)


def inception() -> nn.Module:
    """A stem and two blocks."""
    return nn.Sequential(
        conv_relu(3, 16, stride=2),
        InceptionBlock(16, 12),
        nn.MaxPool2d(2),
        InceptionBlock(48, 16),
        classifier(64),
    )


class GroupedBlock(nn.Module):
    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_relu(channels, width, kernel=1),
            conv_relu(width, width, groups=groups),
            conv_norm(width, channels, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def resnext() -> nn.Module:
    """Xie et al., CVPR 2017: bottlenecks with grouped convolutions."""
    return nn.Sequential(
        conv_relu(3, 32),
        GroupedBlock(32, 32, 4),
        conv_relu(32, 64, stride=2),
        GroupedBlock(64, 48, 4),
        classifier(64),
    )
