"""Random samples, labelled by a network itself, and recoveries on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto

from fakes.logits import find_logits
from tightfit_service.adapters.training.teacher import Teacher
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    QuantizationSettings,
    RecoveryResult,
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout
from tightfit_service.passes.structured_pruning import StructuredPruningPass


def teacher_of(model: ModelProto) -> Teacher:
    return Teacher(graph=model.SerializeToString(), tensors=[find_logits(model)], threads=1)


def samples_of(
    model: ModelProto, count: int, seed: int, *, labelled: bool = True, loud: float = 1.0
) -> Samples:
    """Random inputs, labelled by what the model itself sees in them."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32) * loud
    labels = teacher_of(model).logits(stored).reshape(count, -1).argmax(axis=1)
    layout = Layout.NCHW if len(shape) == 3 else Layout.ANY
    return Samples(
        stored=stored.astype(np.float32),
        labels=labels.astype(np.int64) if labelled else None,
        layout=layout,
        model_layout=layout,
    )


def halved(model: ModelProto) -> bytes:
    passes = StructuredPruningPass()
    graph = model.SerializeToString()
    keep = {g.group_id: range(0, g.unit_count, 2) for g in passes.space(graph).groups}
    return passes.apply(graph, keep)


def accuracy(graph: bytes, samples: Samples) -> float:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: samples.stored})[0]
    assert samples.labels is not None
    return float((outputs.reshape(len(samples), -1).argmax(axis=1) == samples.labels).mean())


def recover(
    graph: bytes,
    model: ModelProto,
    tmp_path: Path,
    settings: RecoverySettings,
    *,
    train: Samples | None = None,
    selection: Samples | None = None,
    quantization: QuantizationSettings | None = None,
    more_teachers: Sequence[bytes] = (),
    unlabeled: Samples | None = None,
) -> RecoveryResult:
    """Train a graph back towards a model that random inputs are labelled by."""
    return TorchTrainer(threads=1).recover(
        graph,
        teachers=Teachers(original=model.SerializeToString(), others=tuple(more_teachers)),
        data=TrainingData(
            train=samples_of(model, 512, 1) if train is None else train,
            selection=samples_of(model, 256, 2) if selection is None else selection,
            unlabeled=unlabeled,
        ),
        settings=settings,
        cache_dir=tmp_path,
        on_progress=lambda _share, _message: None,
        quantization=quantization,
    )
