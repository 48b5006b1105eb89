"""Tests of C source: compiled by a C and a C++ compiler, read back, and evaluated."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fakes.networks import NETWORKS
from tightfit_service.adapters.evaluation.contained_evaluator import ContainedEvaluator
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator
from tightfit_service.adapters.formats.c_array_export import (
    CArrayExporter,
    tflite_in,
)
from tightfit_service.adapters.formats.c_source import array_of, c_source
from tightfit_service.adapters.formats.file_set import join_files, split_files
from tightfit_service.adapters.formats.tflite_arena import activation_bytes
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.hardware import ModelFormat

METADATA = {
    "tightfit.source_digest": "ab" * 32,
    "tightfit.recipe_digest": "cd" * 32,
    "tightfit.recipe": '{"steps":[]}',
    "tightfit.target": "a*/b",
    "tightfit.preprocess": '{"":{"scale":0.0625,"mean":[0.5],"std":[]}}',
    "tightfit.labels": json.dumps(['"quoted"', "\u00e9t\u00e9", "a\\b", "what??/", "plain"]),
}
PROGRAM = """
#include <stdio.h>
#include "model.h"
int main(void) {
  static const char *const names[MODEL_CLASS_COUNT] = MODEL_CLASS_NAMES;
  static const int shape[MODEL_INPUT_0_RANK] = MODEL_INPUT_0_SHAPE;
  static const float mean[] = MODEL_INPUT_0_PREPROCESS_MEAN;
  MODEL_INPUT_0_TYPE input[MODEL_INPUT_0_ELEMENTS];
  unsigned int index, elements = 1;
  for (index = 0; index < MODEL_INPUT_0_RANK; ++index) elements *= (unsigned int)shape[index];
  if (elements != MODEL_INPUT_0_ELEMENTS || sizeof(input) != MODEL_INPUT_0_BYTES) return 1;
  if (((uintptr_t)model_data) % 16 != 0) return 2;
  if (!(MODEL_INPUT_0_SCALE > 0.0f) || MODEL_INPUT_0_ZERO_POINT < -128 || mean[0] != 0.5f) return 3;
  if (MODEL_INPUT_0_PREPROCESS_SCALE != 0.0625f || model_data_len != MODEL_SIZE_BYTES) return 4;
  for (index = 0; index < MODEL_CLASS_COUNT; ++index) puts(names[index]);
  puts(MODEL_SOURCE_SHA256);
  puts(MODEL_OUTPUT_0_NAME);
  fwrite(model_data, 1, model_data_len, stdout);
  return 0;
}
"""


@pytest.fixture(scope="module")
def exported() -> ExportedModel:
    stored = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    return CArrayExporter(tflite=TfliteExporter()).export(
        NETWORKS["residual"](0).SerializeToString(),
        calibration=Samples(stored=stored, labels=None),
        settings=QuantizationSettings(),
        metadata=METADATA,
    )


@pytest.fixture(scope="module")
def files(exported: ExportedModel) -> dict[str, bytes]:
    return split_files(exported.data, ("model.h", "model.c"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "standard", "suffix"),
    [("cc", "c99", "c"), ("cc", "c11", "c"), ("c++", "c++11", "cc"), ("c++", "c++17", "cc")],
)
def test_compilers_take_it_without_a_warning(
    files: dict[str, bytes],
    exported: ExportedModel,
    tmp_path: Path,
    compiler: str,
    standard: str,
    suffix: str,
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} on this machine")
    (tmp_path / "model.h").write_bytes(files["model.h"])
    (tmp_path / f"model.{suffix}").write_bytes(files["model.c"])
    (tmp_path / f"main.{suffix}").write_text(PROGRAM)
    subprocess.run(
        [compiler, f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"main.{suffix}", f"model.{suffix}", "-o", "program"],
        cwd=tmp_path,
        check=True,
    )  # fmt: skip
    said = subprocess.run([tmp_path / "program"], check=True, capture_output=True).stdout
    *lines, rest = said.split(b"\n", 7)
    assert [line.decode() for line in lines[:5]] == json.loads(METADATA["tightfit.labels"])
    assert lines[5:] == [b"ab" * 32, b"fc_out"]
    assert rest == tflite_in(exported.data)


def test_the_header_tells_what_firmware_needs(
    files: dict[str, bytes], exported: ExportedModel
) -> None:
    header = files["model.h"].decode()
    defined = dict(
        line.removeprefix("#define ").split(" ", 1)
        for line in header.splitlines()
        if line.startswith("#define MODEL_") and line.count(" ") > 1
    )
    assert defined["MODEL_INPUT_0_SHAPE"] == "{1, 8, 8, 3}"
    assert defined["MODEL_INPUT_0_TYPE"] == "int8_t"
    assert defined["MODEL_INPUT_0_LAYOUT"] == '"NHWC"'
    assert defined["MODEL_SIZE_BYTES"] == str(exported.device_bytes)
    assert defined["MODEL_SOURCE_SHA256"] == f'"{"ab" * 32}"'
    assert int(defined["MODEL_ACTIVATION_BYTES"]) == activation_bytes(
        TfliteFile(tflite_in(exported.data))
    )
    assert "CONV_2D" in header
    assert header.count("*/") == header.count("/*")


def test_metadata_takes_no_flash(exported: ExportedModel) -> None:
    assert b"cd" * 32 not in tflite_in(exported.data)
    assert exported.device_bytes == len(tflite_in(exported.data))


def test_it_is_evaluated_from_its_source(exported: ExportedModel) -> None:
    inputs = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    evaluator = ContainedEvaluator(file_in=tflite_in, evaluator=LitertEvaluator())
    found = evaluator.outputs(exported.data, inputs)
    expected = LitertEvaluator().outputs(tflite_in(exported.data), inputs)
    assert exported.format is ModelFormat.C_ARRAY
    np.testing.assert_array_equal(found, expected)


def test_equal_files_give_equal_archives(exported: ExportedModel) -> None:
    again = join_files(c_source(tflite_in(exported.data), METADATA))
    assert hashlib.sha256(again).digest() == hashlib.sha256(exported.data).digest()


def test_other_archives_are_refused() -> None:
    with pytest.raises(InvalidModelError, match="archive"):
        tflite_in(b"no archive")
    with pytest.raises(InvalidModelError, match="archive"):
        tflite_in(join_files({"model.h": b"", "../model.c": b""}))
    with pytest.raises(InvalidModelError, match="model_data"):
        array_of(b"int main(void) { return 0; }")


def test_activations_that_never_live_together_share_memory(exported: ExportedModel) -> None:
    file = TfliteFile(tflite_in(exported.data))
    planned = activation_bytes(file)
    sizes = [
        int(np.prod(file.shape(index)))
        for index, tensor in enumerate(file.graph.tensors)
        if file.model.buffers[tensor.buffer].data is None
    ]
    assert max(sizes) <= planned < sum(sizes)
