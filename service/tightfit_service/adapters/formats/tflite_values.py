"""Values of all float tensors of a TFLite file, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.samples import FloatArray


def tensor_values(
    file: TfliteFile, samples: Iterable[Sequence[FloatArray]]
) -> Iterator[dict[int, npt.NDArray[np.float32]]]:
    """Yield the values of inputs and float activations by tensor index, one mapping per sample.

    Activations are read as outputs of a copy of the file: XNNPACK computes those, whereas it does
    not work at all when an interpreter is told to preserve all tensors.

    Args:
        file: A file with float inputs.
        samples: Values of all inputs in the file's order, batch 1 each.
    """
    observed = TfliteFile(file.to_bytes())
    tensors = observed.graph.tensors
    computed = {int(item) for operator in observed.graph.operators for item in operator.outputs}
    wanted = sorted(index for index in computed if tensors[index].type == schema.TensorType.FLOAT32)
    inputs = [int(item) for item in observed.graph.inputs]
    observed.graph.outputs = wanted
    observed.model.signatureDefs = []
    interpreter = Interpreter(model_content=observed.to_bytes(), num_threads=1)
    interpreter.allocate_tensors()
    for sample in samples:
        for index, value in zip(inputs, sample, strict=True):
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        yield {
            **dict(zip(inputs, sample, strict=True)),
            **{index: interpreter.get_tensor(index) for index in wanted},
        }
