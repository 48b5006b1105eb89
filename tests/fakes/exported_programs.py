"""Networks as users write them in PyTorch, and their archives from torch.export."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class ResidualNet(nn.Module):
    """A stem, a residual block, a depthwise-separable block, all with BatchNorm, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.block = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 16, 1),
            nn.Hardswish(),
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        x = self.depthwise(torch.relu(x + self.block(x)))
        return self.head(self.drop(functional.adaptive_avg_pool2d(x, 1).flatten(1)))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class AttentionNet(nn.Module):
    """A class token, LayerNorm, attention over five tokens, GELU and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(functional.gelu(self.hidden(x[:, 0])))  # type: ignore[no-any-return]  # as above


class RecurrentNet(nn.Module):
    """A GRU, an LSTM behind it, and a dense layer on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.gru(steps)[0])[0][:, -1])  # type: ignore[no-any-return]  # as above


class TwoInputs(nn.Module):
    """Two branches that meet; the answers come in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 8)
        self.right = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, motion: torch.Tensor, sound: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.left(motion) + self.right(sound))
        return {"logits": self.head(hidden), "score": torch.sigmoid(hidden.sum(1, keepdim=True))}


class Dense(nn.Module):
    """One dense layer and an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "residual": (ResidualNet, ((3, 8, 8),)),
    "attention": (AttentionNet, ((4, 8),)),
    "recurrent": (RecurrentNet, ((5, 6),)),
    "two inputs": (TwoInputs, ((4,), (6,))),
    "dense": (Dense, ((4,),)),
}
"""Networks by name, with the shapes of one sample of their inputs."""


def network(name: str) -> nn.Module:
    """Return a seeded network in evaluation mode, its BatchNorm with statistics of some data."""
    make, shapes = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    with torch.no_grad():
        net(*(torch.rand(16, *shape) for shape in shapes))
    return net.eval()


def exported(name: str, *, is_free: bool = True) -> bytes:
    """Return the archive of a network, exported with a free batch or at batch 1."""
    return archive_of(network(name), *NETWORKS[name][1], is_free=is_free)


def archive_of(net: nn.Module, *shapes: tuple[int, ...], is_free: bool = True) -> bytes:
    """Return what torch.export.save writes for a network with inputs of these sample shapes."""
    inputs = tuple(torch.rand(2 if is_free else 1, *shape) for shape in shapes)
    free = tuple({0: torch.export.Dim("batch")} for _ in shapes) if is_free else None
    return saved_program(net, inputs, dynamic_shapes=free)


def saved_program(net: nn.Module, inputs: tuple[Any, ...], **options: Any) -> bytes:
    """Return what torch.export.save writes for a network traced on example inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own layers
        return saved(torch.export.export(net, inputs, **options))


def saved(program: torch.export.ExportedProgram) -> bytes:
    """Return what torch.export.save writes."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    """Return the members of an archive by path, without its root folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return an archive with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"net/{name}", content)
    return file.getvalue()


def edited(
    data: bytes, change: Callable[[Any], None], *, member: str = "models/model.json"
) -> bytes:
    """Return an archive with one of its JSON members changed in place by a function."""
    files = members(data)
    document = json.loads(files[member])
    change(document)
    return packed({**files, member: json.dumps(document).encode()})
