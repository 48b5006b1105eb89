"""Where, by how many threads and in which number format training computes; the last is probed."""

from __future__ import annotations

import contextlib
import copy
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from tightfit_service.adapters.training.module import GraphModule
from tightfit_service.application.samples import FloatArray

_WORTHWHILE = 0.85
"""Share of the plain format's time that another must stay below; less is noise, and noise is not repeatable."""

_LEAST_PART = 32
"""Samples of a part of a batch: BatchNorms of smaller ones normalise by noise (Hoffer et al., 2017)."""


@dataclass(frozen=True, kw_only=True)
class TrainingFormat:
    """Device, memory order and number format of the forward pass; parameters stay float32.

    Attributes:
        shards: Parts of a batch that are computed at a time; see `BatchShards`.
    """

    device: str = "cpu"
    channels_last: bool = False
    bf16: bool = False
    shards: int = 1

    def __str__(self) -> str:
        """Return the words for a note."""
        order = ", channels last" if self.channels_last else ""
        return f"{'bfloat16' if self.bf16 else 'float32'}{order} on {self.device}"

    def context(self) -> AbstractContextManager[object]:
        """Return the context that the forward pass runs in."""
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def inputs(self, batch: FloatArray) -> torch.Tensor:
        """Return a batch as a tensor in place and order."""
        result = torch.from_numpy(batch).to(self.device)
        if self.channels_last and result.ndim == 4:
            return result.contiguous(memory_format=torch.channels_last)
        return result

    def place(self, module: GraphModule) -> GraphModule:
        """Move a module to the device and into the memory order."""
        module.to(self.device)
        if self.channels_last:
            for parameter in module.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return module


def fastest_format(module: GraphModule, logits: str, batch: FloatArray) -> TrainingFormat:
    """Time a few training steps in each format on a copy of the module and return the fastest.

    bfloat16 helps where the processor multiplies in it and halves the speed elsewhere, so it is
    tried on processors that do. The memory order alone changes less than the clock varies, and a
    choice by noise would make results unrepeatable: it goes with bfloat16 only, and into how many
    parts a batch of images goes follows from the number of threads.
    """
    if torch.cuda.is_available():
        return TrainingFormat(
            device="cuda", channels_last=batch.ndim == 4, bf16=torch.cuda.is_bf16_supported()
        )
    if batch.ndim != 4:
        return TrainingFormat()
    plain = TrainingFormat(shards=_shard_count(len(batch)))
    if not has_fast_bf16():
        return plain
    candidates = [plain, replace(plain, channels_last=True, bf16=True)]
    seconds = {form: _step_seconds(module, logits, batch, form) for form in candidates}
    best = min(candidates, key=lambda form: seconds[form])
    return best if seconds[best] < _WORTHWHILE * seconds[plain] else plain


def _shard_count(samples: int) -> int:
    """Return into how many parts a batch goes: a thread each, as long as they are large enough."""
    return max(1, min(torch.get_num_threads(), samples // _LEAST_PART))


def has_fast_bf16() -> bool:
    """Return whether the processor has instructions that multiply bfloat16."""
    # torch offers these questions under private names only; one that is gone counts as no
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(check() for name in checks if (check := getattr(torch.cpu, name, None)))


def _step_seconds(
    module: GraphModule, logits: str, batch: FloatArray, form: TrainingFormat
) -> float:
    """Return the time of the fastest of a few forward and backward passes."""
    trial = form.place(copy.deepcopy(module)).train()
    inputs = form.inputs(batch)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        with form.context():
            loss = trial.run_to([logits], inputs)[0].float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        trial.zero_grad()
        best = min(best, time.perf_counter() - start)
    return best
