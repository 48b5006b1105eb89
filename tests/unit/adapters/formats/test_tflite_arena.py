"""Tests of the memory plan, against what LiteRT for Microcontrollers allocates."""

from __future__ import annotations

import pytest

from fakes.tflite_files import TfliteBuilder
from tightfit_service.adapters.formats.tflite_arena import activation_bytes
from tightfit_service.adapters.formats.tflite_file import TfliteFile


def network(sizes: list[int], operators: list[tuple[list[int], int]]) -> TfliteFile:
    """Return a file of int8 tensors of these sizes; the first is its input, the last its output."""
    builder = TfliteBuilder()
    for size in sizes:
        builder.tensor([1, size], dtype="int8")
    for inputs, output in operators:
        builder.operator("ADD", inputs, output)
    builder.graph.inputs, builder.graph.outputs = [0], [len(sizes) - 1]
    file = TfliteFile.__new__(TfliteFile)
    file.model, file.graph = builder.model, builder.graph
    return file


# "Arena allocation head" of RecordingMicroAllocator, tflite-micro 0.dev20261023182759 on x86-64
RESIDUAL = [
    ([0], 1), ([1], 2), ([2], 3), ([3], 4), ([2, 4], 5), ([5], 6), ([6], 7), ([7], 8),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "operators", "measured"),
    [
        ([64, 1024, 2048, 2048, 2048, 2048, 3200, 1024, 64, 10], [*RESIDUAL, ([8], 9)], 7296),
        (
            [64, 768, 1280, 1024, 1280, 1280, 2000, 128, 1024, 64, 10],
            [*RESIDUAL, ([8], 9), ([9], 10)],
            4560,
        ),
    ],
)
def test_the_plan_is_that_of_the_microcontroller_runtime(
    sizes: list[int], operators: list[tuple[list[int], int]], measured: int
) -> None:
    assert activation_bytes(network(sizes, operators)) == measured


def test_one_tensor_is_rounded_up_to_the_alignment() -> None:
    assert activation_bytes(network([17, 1], [([0], 1)])) == 32 + 16
