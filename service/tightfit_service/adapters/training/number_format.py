"""Where and in which number format training computes: probed, since processors differ widely."""

from __future__ import annotations

import contextlib
import copy
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from tightfit_service.adapters.training.module import GraphModule
from tightfit_service.application.samples import FloatArray

_WORTHWHILE = 0.85
"""Share of the plain format's time that another must stay below; less is noise, and noise is not repeatable."""


@dataclass(frozen=True, kw_only=True)
class TrainingFormat:
    """Device, memory order and number format of the forward pass; parameters stay float32."""

    device: str = "cpu"
    channels_last: bool = False
    bf16: bool = False

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

    bfloat16 helps where the processor multiplies in it and halves the speed elsewhere, so on
    processors without it only the memory order is tried.
    """
    if torch.cuda.is_available():
        return TrainingFormat(
            device="cuda", channels_last=batch.ndim == 4, bf16=torch.cuda.is_bf16_supported()
        )
    plain = TrainingFormat()
    if batch.ndim != 4:
        return plain
    candidates = [plain, TrainingFormat(channels_last=True)]
    if has_fast_bf16():
        candidates.append(TrainingFormat(channels_last=True, bf16=True))
    seconds = {form: _step_seconds(module, logits, batch, form) for form in candidates}
    best = min(candidates, key=lambda form: seconds[form])
    return best if seconds[best] < _WORTHWHILE * seconds[plain] else plain


def has_fast_bf16() -> bool:
    """Return whether the processor has instructions that multiply bfloat16."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    if not capabilities.startswith("AVX512"):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _has_bf16_units()  # noqa: SLF001  # no public question


def _has_bf16_units() -> bool:
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


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
