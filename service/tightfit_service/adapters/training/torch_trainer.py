"""The trainer: importance of channels and recovery of compressed graphs, in torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch

from tightfit_service.adapters.training.importance import channel_importance
from tightfit_service.adapters.training.session import RecoverySession, check_samples
from tightfit_service.application.ports import (
    ProgressCallback,
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.network import PruningSpace
from tightfit_service.graph.structure import graph_inputs


class TorchTrainer:
    """Implements `ports.Trainer`. One call at a time per process: torch's threads and seed are global."""

    def __init__(self, *, threads: int | None = None) -> None:
        """Use that many threads; None leaves it to torch."""
        self._threads = threads

    def importance(
        self, graph: bytes, space: PruningSpace, samples: Samples, *, seed: int
    ) -> Mapping[str, Sequence[float]]:
        """Return the importance of each unit of each group; see `ports.Trainer`."""
        self._prepare_torch(seed)
        check_samples(samples, "train")
        return channel_importance(graph, space, samples, seed=seed)

    def recover(
        self,
        graph: bytes,
        *,
        teacher: bytes,
        train: Samples,
        selection: Samples,
        settings: RecoverySettings,
        cache_dir: Path,
        on_progress: ProgressCallback,
        quantization: QuantizationSettings | None = None,
        more_teachers: Sequence[bytes] = (),
        unlabeled: Samples | None = None,
    ) -> RecoveryResult:
        """Train `graph` back towards `teacher`; see `ports.Trainer`."""
        begun = time.monotonic()
        self._prepare_torch(settings.seed)
        for split, samples in (("train", train), ("selection", selection)):
            check_samples(samples, split)
        for network in (graph, teacher, *more_teachers):
            _check_inputs(network)
        on_progress(0.0, "fitting layers to the original")
        session = RecoverySession(
            graph=graph,
            teachers=(teacher, *more_teachers),
            train=train,
            selection=selection,
            unlabeled=unlabeled,
            settings=settings,
            quantization=quantization or QuantizationSettings(),
            cache_dir=cache_dir,
            on_progress=on_progress,
            begun=begun,
        )
        return session.run()

    def _prepare_torch(self, seed: int) -> None:
        torch.manual_seed(seed)
        if self._threads is not None:
            torch.set_num_threads(self._threads)


def _check_inputs(graph: bytes) -> None:
    """Refuse graphs with several inputs: samples are one array."""
    names = graph_inputs(onnx.load_model_from_string(graph))
    if len(names) != 1:
        raise UnsupportedError(
            f"the model has {len(names)} inputs ({', '.join(names)}); training takes models with one",
            field="model",
            remedy="the model can still be quantized without training",
        )
