"""Tests of what the table of kernels says, in LiteRT itself."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from fakes.tflite_operators import OPERATORS
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_kernels import KERNELS
from tightfit_service.adapters.formats.tflite_quantize import quantize_file
from tightfit_service.adapters.formats.tflite_spelling import spell_out
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.domain.hardware import NumberFormat

_POSITIVE = {"DIV", "LOG", "RSQRT", "SQRT"}
_LIMITS = {NumberFormat.INT8: 5e-3, NumberFormat.INT16X8: 1e-3}


def _is_covered(name: str) -> bool:
    """Whether a file has float inputs and operators of the table only, weights as they are."""
    file = TfliteFile(OPERATORS[name]())
    kinds = [file.graph.tensors[int(item)].type for item in file.graph.inputs]
    made = {file.operator_name(item) for item in file.graph.operators}
    return (
        all(kind == schema.TensorType.FLOAT32 for kind in kinds)
        and made <= KERNELS.keys()
        and len(file.model.subgraphs) == 1
    )


@pytest.mark.parametrize("name", ["squared difference", "hard_swish"])
def test_spelled_out_operators_compute_the_same(name: str) -> None:
    data = OPERATORS[name]()
    file = TfliteFile(data)
    spell_out(file, has_swish=False)
    before = [TfliteFile(data).operator_name(item) for item in TfliteFile(data).graph.operators]
    after = [file.operator_name(item) for item in file.graph.operators]
    assert len(after) > len(before)
    rng = np.random.default_rng(0)
    samples = [[rng.normal(0, 3, file.shape(int(i))).astype(np.float32) for i in file.graph.inputs]]
    assert _outputs(file.to_bytes(), samples) == pytest.approx(_outputs(data, samples), abs=1e-5)


def _outputs(data: bytes, samples: list[list[np.ndarray]]) -> np.ndarray:
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    found = []
    for sample in samples:
        for detail, given in zip(interpreter.get_input_details(), sample, strict=True):
            value = given
            if detail["dtype"] is not np.float32:
                scale, zero_point = detail["quantization"]
                limits = np.iinfo(detail["dtype"])
                value = np.clip(np.rint(given / scale) + zero_point, limits.min, limits.max)
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        interpreter.invoke()
        outputs = []
        for detail in interpreter.get_output_details():
            scale, zero_point = detail["quantization"]
            value = interpreter.get_tensor(detail["index"]).astype(np.float64)
            outputs.append(((value - zero_point) * scale if scale else value).ravel())
        found.append(np.concatenate(outputs))
    return np.stack(found)


@pytest.mark.parametrize("number_format", list(_LIMITS))
@pytest.mark.parametrize("name", [name for name in OPERATORS if _is_covered(name)])
def test_operators_compute_in_integers_what_they_do_in_float(
    name: str, number_format: NumberFormat
) -> None:
    data = OPERATORS[name]()
    file = TfliteFile(data)
    names = [file.operator_name(item) for item in file.graph.operators]
    low = 0.1 if _POSITIVE & set(names) else -2.0
    rng = np.random.default_rng(0)
    shapes = [file.shape(int(item)) for item in file.graph.inputs]
    samples = [
        [rng.uniform(low, 2.0, shape).astype(np.float32) for shape in shapes] for _ in range(16)
    ]
    fallbacks = quantize_file(
        file,
        lambda: iter(samples),
        settings=QuantizationSettings(number_format=number_format, method="minmax"),
        formats=[number_format] * len(names),
        given={},
    )
    expected = _outputs(data, samples)
    found = _outputs(file.to_bytes(), samples)
    noise = ((found - expected) ** 2).mean() / expected.var()
    assert noise < _LIMITS[number_format]
    if number_format is NumberFormat.INT8:
        kinds = {file.graph.tensors[int(item)].type for item in file.graph.outputs}
        computed = [n for n in names if n != "DIV"]
        assert not [item for item in fallbacks if names[item.place] in computed]
        assert kinds <= {schema.TensorType.INT8} or "DIV" in names
