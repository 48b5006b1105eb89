"""Transformers and the networks that borrowed from them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn

from architectures.blocks import InvertedResidual, classifier, conv_norm


class FusedAttention(nn.Module):
    """One dense layer for queries, keys and values, as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        y: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return y


class SeparateAttention(nn.Module):
    """Three dense layers, as in Hugging Face's transformers."""

    def __init__(self, width: int, heads: int, *, einsum: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.size = width // heads
        self.einsum = einsum
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).view(x.shape[0], x.shape[1], self.heads, self.size)
            for part in (self.query, self.key, self.value)
        )
        if self.einsum:
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(self.size)
            mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), v)
        else:
            scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / math.sqrt(self.size)
            mixed = (scores.softmax(dim=-1) @ v.transpose(1, 2)).permute(0, 2, 1, 3)
        y: Tensor = self.proj(mixed.reshape(x.shape[0], x.shape[1], self.heads * self.size))
        return y


class TorchAttention(nn.Module):
    """torch's own multi-head attention, as in torchvision."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x, x, x, need_weights=False)[0]
        return y


class Encoder(nn.Module):
    """LayerNorm in front of attention and of two dense layers, each with a shortcut."""

    def __init__(self, width: int, attention: nn.Module, *, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return y


class VisionTransformer(nn.Module):
    """Dosovitskiy et al., ICLR 2021: patches, a class token, positions."""

    def __init__(self, attention: str, *, width: int = 48, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.5)
        make: Callable[[], nn.Module] = {
            "fused": lambda: FusedAttention(width, heads),
            "separate": lambda: SeparateAttention(width, heads),
            "einsum": lambda: SeparateAttention(width, heads, einsum=True),
            "torch": lambda: TorchAttention(width, heads),
        }[attention]
        self.blocks = nn.Sequential(
            *[Encoder(width, make(), hidden=2 * width) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        token = self.token.expand(x.shape[0], -1, -1)
        x = torch.cat((token, x), dim=1) + self.positions
        y: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return y


def vit_fused() -> nn.Module:
    """Queries, keys and values from one layer."""
    return VisionTransformer("fused")


def vit_separate() -> nn.Module:
    """Queries, keys and values from three layers."""
    return VisionTransformer("separate")


def vit_einsum() -> nn.Module:
    """Attention written with einsum."""
    return VisionTransformer("einsum")


def vit_torch() -> nn.Module:
    """Attention by nn.MultiheadAttention, which puts heads into the batch."""
    return VisionTransformer("torch")


class MobileViTBlock(nn.Module):
    """Mehta and Rastegari, ICLR 2022: attention between equal pixels of all patches."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.local = conv_norm(channels, channels, activation=nn.SiLU())
        self.enter = nn.Conv2d(channels, width, 1, bias=False)
        self.encoder = Encoder(width, FusedAttention(width, 4), hidden=2 * width)
        self.leave = conv_norm(width, channels, kernel=1, activation=nn.SiLU())
        self.merge = conv_norm(2 * channels, channels, activation=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(self.local(x))
        batch, width, height, columns = y.shape
        rows, cols = height // 2, columns // 2
        y = y.reshape(batch * width * rows, 2, cols, 2).transpose(1, 2)
        y = y.reshape(batch, width, rows * cols, 4).transpose(1, 3)
        y = y.reshape(batch * 4, rows * cols, width)
        y = self.encoder(y)
        y = y.reshape(batch, 4, rows * cols, width).transpose(1, 3)
        y = y.reshape(batch * width * rows, cols, 2, 2).transpose(1, 2)
        y = y.reshape(batch, width, height, columns)
        z: Tensor = self.merge(torch.cat((x, self.leave(y)), dim=1))
        return z


def mobilevit() -> nn.Module:
    """Inverted residuals with one transformer block between."""
    return nn.Sequential(
        conv_norm(3, 16, stride=2, activation=nn.SiLU()),
        InvertedResidual(16, 24, stride=2, activation=nn.SiLU),
        MobileViTBlock(24, 32),
        InvertedResidual(24, 32, stride=2, activation=nn.SiLU),
        classifier(32),
    )


class ConvNextBlock(nn.Module):
    """Liu et al., CVPR 2022: depthwise 7x7, LayerNorm over channels last, two dense layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over axis 1, written out as ConvNeXt does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def convnext() -> nn.Module:
    """Two stages of one block."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, stride=4),
        ChannelsFirstNorm(24),
        ConvNextBlock(24),
        ChannelsFirstNorm(24),
        nn.Conv2d(24, 48, 2, stride=2),
        ConvNextBlock(48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(48),
        nn.Linear(48, 10),
    )
