"""From a seeded torch module to the bytes of an ONNX file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


def build(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return the module in inference mode, with weights from the seed and statistics as after training.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                assert isinstance(part.running_mean, Tensor)
                assert isinstance(part.running_var, Tensor)
                nn.init.normal_(part.running_mean, std=0.1)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
            if isinstance(
                part,
                nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm | nn.InstanceNorm2d,
            ) and isinstance(part.weight, Tensor):
                nn.init.uniform_(part.weight, 0.7, 1.3)
                nn.init.normal_(part.bias, std=0.1)
    return module.eval()


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
