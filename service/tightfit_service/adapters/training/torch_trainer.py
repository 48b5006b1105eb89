"""The trainer: importance of channels and recovery of compressed graphs, in torch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from tightfit_service.adapters.training.importance import channel_importance
from tightfit_service.adapters.training.joined_inputs import (
    JOINED,
    has_several_inputs,
    join_inputs,
    join_samples,
    part_inputs,
)
from tightfit_service.adapters.training.session import RecoverySession, check_samples
from tightfit_service.adapters.training.teacher import open_teachers
from tightfit_service.application.ports import (
    ProgressCallback,
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.network import DEFAULT_IMPORTANCE, ImportanceCriterion, PruningSpace
from tightfit_service.graph.structure import graph_inputs


class TorchTrainer:
    """Implements `ports.Trainer`. One call at a time per process: torch's threads and seed are global."""

    def __init__(self, *, threads: int | None = None) -> None:
        """Use that many threads; None leaves it to torch."""
        self._threads = threads

    def importance(
        self,
        graph: bytes,
        space: PruningSpace,
        samples: Samples,
        *,
        seed: int,
        criterion: ImportanceCriterion = DEFAULT_IMPORTANCE,
    ) -> Mapping[str, Sequence[float]]:
        """Return the importance of each unit of each group; see `ports.Trainer`."""
        self._prepare_torch(seed)
        check_samples(samples, "train")
        return channel_importance(graph, space, samples, seed=seed, criterion=criterion)

    def check_teacher(self, teacher: bytes, *, original: bytes, samples: Samples) -> None:
        """Refuse a teacher that cannot be listened to; see `ports.Trainer`."""
        graphs, few = [original, teacher], samples.take([0])
        if has_several_inputs(original):
            names = graph_inputs(onnx.load_model_from_string(original))
            with tempfile.TemporaryDirectory(prefix="joined-inputs-") as name:
                few = join_samples(few, names, Path(name))
            graphs = [join_inputs(graph, names) for graph in graphs]
        open_teachers(graphs, few, threads=torch.get_num_threads())

    def recover(
        self,
        graph: bytes,
        *,
        teachers: Teachers,
        data: TrainingData,
        settings: RecoverySettings,
        cache_dir: Path,
        on_progress: ProgressCallback,
        quantization: QuantizationSettings | None = None,
    ) -> RecoveryResult:
        """Train `graph` back towards its teachers; see `ports.Trainer`."""
        begun = time.monotonic()
        self._prepare_torch(settings.seed)
        check_samples(data.train, "train")
        check_samples(data.selection, "selection")
        if has_several_inputs(graph):
            return self._recover_joined(
                graph,
                teachers=teachers,
                data=data,
                settings=settings,
                cache_dir=cache_dir,
                on_progress=on_progress,
                quantization=quantization,
            )
        on_progress(0.0, "fitting layers to the original")
        session = RecoverySession(
            graph=graph,
            teachers=teachers,
            data=data,
            settings=settings,
            quantization=quantization or QuantizationSettings(),
            cache_dir=cache_dir,
            on_progress=on_progress,
            begun=begun,
        )
        return session.run()

    def _recover_joined(
        self, graph: bytes, *, teachers: Teachers, data: TrainingData, **others: Any
    ) -> RecoveryResult:
        """Train a network with several inputs as one with a single input."""
        names = graph_inputs(onnx.load_model_from_string(graph))
        with tempfile.TemporaryDirectory(prefix="joined-inputs-") as name:
            folder = Path(name)
            result = self.recover(
                join_inputs(graph),
                teachers=Teachers(
                    original=join_inputs(teachers.original),
                    others=tuple(join_inputs(network, names) for network in teachers.others),
                    reference=teachers.reference and join_inputs(teachers.reference),
                ),
                data=TrainingData(
                    train=join_samples(data.train, names, folder),
                    selection=join_samples(data.selection, names, folder),
                    unlabeled=(
                        None
                        if data.unlabeled is None
                        else join_samples(data.unlabeled, names, folder)
                    ),
                ),
                **others,
            )
        return replace(
            result,
            graph=part_inputs(result.graph, graph),
            ranges={k: v for k, v in result.ranges.items() if not k.startswith(JOINED)},
        )

    def _prepare_torch(self, seed: int) -> None:
        torch.manual_seed(seed)
        if self._threads is not None:
            torch.set_num_threads(self._threads)
