"""From a seeded torch module to the bytes of an ONNX file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_SEEN_SAMPLES = 64
_LOGIT_SPREAD = 2.0
"""Standard deviation of each class score over the samples: the greatest score is then 0.9 likely
or so, as in trained networks, and follows from the input."""


def signals(rng: np.random.Generator, shape: Shape) -> npt.NDArray[np.float32]:
    """Return random inputs, samples first: noise whose neighbours are alike.

    Each sample has a contrast of its own, and a mean per channel (the shortest axis), as pictures
    and recordings have.
    """
    values = rng.normal(size=shape)
    for axis in range(1, len(shape)):
        if shape[axis] > 8:
            values = (values + np.roll(values, 1, axis) + np.roll(values, 2, axis)) / 3**0.5
    plain = [shape[0], *(1 for _ in shape[1:])]
    per_channel = list(plain)
    if len(shape) > 2:
        channels = 1 + int(np.argmin(shape[1:]))
        per_channel[channels] = shape[channels]
    values = values * rng.uniform(0.5, 1.5, plain) + rng.normal(0.0, 0.5, per_channel)
    return values.astype(np.float32)


def build(
    make: Callable[[], nn.Module], shapes: Sequence[Shape], *, seed: int, is_classifier: bool
) -> nn.Module:
    """Return the module in inference mode, with weights from the seed and statistics as after training.

    BatchNorms hold the statistics of `signals`, and the last layer of a classifier is scaled and
    shifted so that every class score depends on the input. The global random state is left as it was.
    """
    rng = np.random.default_rng(seed)
    inputs = [torch.from_numpy(signals(rng, (_SEEN_SAMPLES, *shape))) for shape in shapes]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = make().eval()
        norms = [part for part in module.modules() if isinstance(part, _NORMS)]
        for norm in norms:
            if isinstance(norm.weight, Tensor):
                nn.init.uniform_(norm.weight, 0.7, 1.3)
                nn.init.normal_(norm.bias, std=0.1)
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.momentum = 1.0
                norm.train()
        module(*inputs)
        for norm in norms:
            norm.eval()
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.momentum = 0.1
        if is_classifier:
            _spread_scores(module, inputs)
    return module


def _spread_scores(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Scale and shift the layer that runs last so that scores have mean 0 and `_LOGIT_SPREAD`."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        part.register_forward_hook(lambda part, _inputs, result: calls.append((part, result)))
        for part in module.modules()
        if isinstance(part, _LAYERS)
    ]
    module(*inputs)
    for hook in hooks:
        hook.remove()
    layer, scores = calls[-1]
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    assert layer.bias is not None
    axis = -1 if isinstance(layer, nn.Linear) else 1
    rows = scores.movedim(axis, 0).flatten(1)
    factor = _LOGIT_SPREAD / rows.std(dim=1).mean()
    layer.weight.mul_(factor)
    layer.bias.sub_(rows.mean(dim=1)).mul_(factor)


def export(
    module: nn.Module,
    shapes: Sequence[Shape],
    *,
    opset: int,
    free_batch: bool,
    fold_norms: bool,
    output_count: int,
) -> bytes:
    """Write the module through torch's TorchScript exporter, as most files in the field were.

    Args:
        module: In inference mode.
        shapes: Shape of each input without the batch.
        opset: Version of the operator set.
        free_batch: Whether axis 0 is a free dimension or 1.
        fold_norms: Whether the exporter folds BatchNorm into convolutions.
        output_count: Number of outputs of the module.
    """
    inputs = [f"input{index}" if index else "input" for index in range(len(shapes))]
    outputs = [f"output{index}" if index else "output" for index in range(output_count)]
    mode = torch.onnx.TrainingMode.EVAL if fold_norms else torch.onnx.TrainingMode.PRESERVE
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        tempfile.TemporaryDirectory() as folder,
    ):
        target = Path(folder) / "model.onnx"
        # The tracer and the exporter warn about their own ways, on every network.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.onnx.export(
            module,
            tuple(torch.rand(1, *shape) for shape in shapes),
            target,
            dynamo=False,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)}
            if free_batch
            else None,
            training=mode,
            do_constant_folding=fold_norms,
        )
        return target.read_bytes()


def export_program(
    module: nn.Module, shapes: Sequence[Shape], *, opset: int, output_count: int
) -> bytes:
    """Write the module through torch.export, with a free batch, as torch does by default since 2.9.

    Args:
        module: In inference mode.
        shapes: Shape of each input without the batch.
        opset: Version of the operator set, 18 at least.
        output_count: Number of outputs of the module.
    """
    inputs = [f"input{index}" if index else "input" for index in range(len(shapes))]
    outputs = [f"output{index}" if index else "output" for index in range(output_count)]
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # The exporter and the libraries it calls warn about one another.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(torch.rand(2, *shape) for shape in shapes),
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in shapes),
            verbose=False,
        )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data
