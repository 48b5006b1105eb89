"""Networks around what is rarer: many activations, learned pooling, an embedding, unknown operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn

from architectures.blocks import classifier, conv_relu


def activations() -> nn.Module:
    """A layer each for the activations that no other network here has."""
    kinds: tuple[nn.Module, ...] = (
        nn.ELU(),
        nn.LeakyReLU(0.2),
        nn.CELU(1.5),
        nn.Softplus(),
        nn.SELU(),
        nn.PReLU(16),
        nn.Mish(),
        nn.Softsign(),
        nn.GELU(approximate="tanh"),
        nn.Hardtanh(-2.0, 2.0),
        nn.LogSigmoid(),
    )
    parts: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=2, padding=1)]
    for kind in kinds:
        parts.extend((nn.BatchNorm2d(16), kind, nn.Conv2d(16, 16, 1)))
    return nn.Sequential(*parts, nn.BatchNorm2d(16), nn.ReLU(), classifier(16))


class AttentionModule(nn.Module):
    """Woo et al., ECCV 2018 (CBAM): channels weighted by mean and maximum, then places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, channels)
        )
        self.place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.dense(x.mean((2, 3))) + self.dense(x.amax((2, 3)))
        x = x * weights.sigmoid()[:, :, None, None]
        seen = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        y: Tensor = x * self.place(seen).sigmoid()
        return y


def cbam() -> nn.Module:
    """Convolutions with attention over channels and places."""
    return nn.Sequential(
        conv_relu(3, 16, stride=2),
        AttentionModule(16),
        conv_relu(16, 32, stride=2),
        AttentionModule(32),
        classifier(32),
    )


class Embedding(nn.Module):
    """A vector of length 1 per image, pooled by a generalised mean (Radenovic et al., 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_relu(3, 16, stride=2), conv_relu(16, 32, stride=2))
        self.power = nn.Parameter(torch.tensor(3.0))
        self.head = nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).clamp(min=1e-3).pow(self.power).mean((2, 3)).pow(1.0 / self.power)
        return F.normalize(self.head(x), dim=1)


def embedding() -> nn.Module:
    """For faces or words that are compared by the angle between vectors."""
    return Embedding()


class SpatialTransformer(nn.Module):
    """Jaderberg et al., NeurIPS 2015: features sampled where a small network says."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = conv_relu(3, 16, stride=2)
        self.where = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        line = torch.linspace(-0.8, 0.8, 16)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
        self.register_buffer("grid", grid[None])
        self.leave = nn.Sequential(conv_relu(16, 24, stride=2), classifier(24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        shift = self.where(x).tanh() * 0.2
        assert isinstance(self.grid, Tensor)
        grid = self.grid + shift[:, None, None, :]
        y: Tensor = self.leave(F.grid_sample(x, grid, align_corners=False))
        return y


def spatial_transformer() -> nn.Module:
    """GridSample, which has no rule for pruning, between convolutions."""
    return SpatialTransformer()


class TwoHeads(nn.Module):
    """One trunk for class scores and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            conv_relu(3, 16, stride=2), conv_relu(16, 32, stride=2), conv_relu(32, 48, stride=2)
        )
        self.value = classifier(48, 1)
        self.scores = classifier(48, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        value = self.value(x)
        return self.scores(x).softmax(dim=1), value


def two_heads() -> nn.Module:
    """Two outputs of different kinds."""
    return TwoHeads()
