"""What several architectures are made of."""

from __future__ import annotations

from torch import Tensor, nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution, BatchNorm and an activation, if any."""
    parts: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]
    if activation is not None:
        parts.append(activation)
    return nn.Sequential(*parts)


def conv_relu(
    in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return conv_norm(
        in_channels, out_channels, kernel=kernel, stride=stride, groups=groups, activation=nn.ReLU()
    )


def classifier(channels: int, classes: int = 10) -> nn.Sequential:
    """Global average pooling and a dense layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class SqueezeExcite(nn.Module):
    """Channels weighted by what their means say (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)
        self.relu = nn.ReLU()
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))
        return x * weights


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project, with a shortcut (Sandler et al., CVPR 2018)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expand: int = 4,
        kernel: int = 3,
        stride: int = 1,
        squeeze: bool = False,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        hidden = in_channels * expand
        parts: list[nn.Module] = []
        if expand > 1:
            parts.append(conv_norm(in_channels, hidden, kernel=1, activation=activation()))
        parts.append(
            conv_norm(
                hidden, hidden, kernel=kernel, stride=stride, groups=hidden, activation=activation()
            )
        )
        if squeeze:
            parts.append(SqueezeExcite(hidden, max(4, hidden // 4)))
        parts.append(conv_norm(hidden, out_channels, kernel=1))
        self.body = nn.Sequential(*parts)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y
