"""Accuracy as the interpreter for microcontrollers computes it, and what happens where it cannot."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from ai_edge_litert import schema_py_generated as schema

from fakes.tflite_files import TfliteBuilder
from tightfit_service.adapters.emulators.tflm_interpreter import MicroRun, TflmInterpreter
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator, LitertRunner
from tightfit_service.adapters.evaluation.tflm_evaluator import PROBED, TflmEvaluator
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.errors import InvalidDatasetError
from tightfit_service.domain.hardware import ModelFormat

CATALOGUE = YamlTargetCatalogue()
TFLITE = ModelFormat.TFLITE
COUNT = 300
needs_tflm = pytest.mark.skipif(
    not TflmInterpreter.is_installed(), reason="tflite-micro is not installed"
)


def classifier() -> bytes:
    """An int8 dense layer of 6 inputs and 4 classes."""
    builder = TfliteBuilder()
    weights = np.random.default_rng(3).integers(-127, 128, size=(4, 6))
    source = builder.tensor([1, 6], dtype="int8", scale=0.03, zero_point=-3)
    inputs = [
        source,
        builder.constant(weights, dtype="int8", scale=0.01),
        builder.constant(np.arange(4) * 100, dtype="int32", scale=0.03 * 0.01),
    ]
    output = builder.tensor([1, 4], dtype="int8", scale=0.05, zero_point=7)
    builder.operator("FULLY_CONNECTED", inputs, output, schema.FullyConnectedOptionsT())
    return builder.build([source], [output])


def samples(*shape: int, count: int = COUNT) -> Samples:
    generator = np.random.default_rng(5)
    return Samples(
        stored=generator.normal(size=(count, *shape)).astype(np.float32),
        labels=generator.integers(0, 4, size=count),
        name="evaluation",
    )


def evaluator(interpreter: TflmInterpreter | None = None, seconds: float = 60.0) -> TflmEvaluator:
    return TflmEvaluator(files={TFLITE: bytes}, interpreter=interpreter, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class Shifted(TflmInterpreter):
    """Answers of LiteRT; of each tenth sample of a call, the first class has more."""

    steps: int = 3

    @staticmethod
    def is_installed() -> bool:
        return True

    def run(self, data: bytes, *inputs: npt.NDArray[np.generic]) -> MicroRun:
        runner = LitertRunner(data, threads=1)
        real = (np.asarray(inputs[0], dtype=np.float32) + 3) * np.float32(0.03)
        steps = np.round(runner.run(real)[0] / 0.05) + 7
        steps[::10, 0] += self.steps
        outputs = np.clip(steps, -128, 127).astype(np.int8)
        return MicroRun(outputs=outputs, seconds=0.001 * len(outputs), arena=None)  # type: ignore[arg-type]


@needs_tflm
def test_the_interpreters_own_answers_are_judged() -> None:
    given = samples(6)
    found = evaluator().evaluate(classifier(), TFLITE, given)
    real = given.inputs(slice(None))
    steps = np.clip(np.round(real / np.float32(0.03)) - 3, -128, 127).astype(np.int8)
    answers = TflmInterpreter().run(classifier(), steps).outputs.argmax(axis=1)
    assert found.accuracy.value == pytest.approx((answers == given.labels).mean())
    assert found.accuracy.sample_count == COUNT
    (note,) = found.notes
    assert f"all {COUNT} samples" in note
    assert "same outputs" in note or "no more than one step" in note


@needs_tflm
def test_without_time_a_part_is_run_there_and_the_rest_in_litert() -> None:
    given = samples(6)
    found = evaluator(seconds=0.0).evaluate(classifier(), TFLITE, given)
    assert f"on {PROBED} of {COUNT} samples" in found.notes[0]
    assert "on the others by LiteRT" in found.notes[0]
    by_litert = LitertEvaluator().evaluate(classifier(), given)
    assert found.accuracy.value == pytest.approx(by_litert.value, abs=PROBED / COUNT)


@needs_tflm
def test_several_processes_find_the_same() -> None:
    given = samples(6, count=7)
    alone = evaluator().evaluate(classifier(), TFLITE, given)
    shared = TflmEvaluator(files={TFLITE: bytes}, threads=3).evaluate(classifier(), TFLITE, given)
    assert shared == alone


@needs_tflm
def test_inputs_reach_it_in_the_order_of_the_file() -> None:
    builder = TfliteBuilder()
    first, second, output = (builder.tensor([1, 4], dtype="int8", scale=0.05) for _ in range(3))
    builder.operator("SUB", [first, second], output, schema.SubOptionsT())
    file = builder.build([first, second], [output])
    names = LitertRunner(file, threads=1).input_names
    generator = np.random.default_rng(1)
    arrays = [generator.integers(-40, 40, size=(20, 4)) * np.float32(0.05) for _ in names]
    arrays = [values.astype(np.float32) for values in arrays]
    given = Samples(
        stored=arrays[1],
        input_name=names[1],
        others={names[0]: StoredInput(stored=arrays[0])},
        labels=(arrays[0] - arrays[1]).argmax(axis=1),
    )
    found = evaluator().evaluate(file, TFLITE, given)
    assert found.accuracy.value == 1.0
    assert "accuracy computed by TFLM's interpreter" in found.notes[0]


@needs_tflm
def test_an_operator_that_it_lacks_is_named_and_litert_judges() -> None:
    builder = TfliteBuilder()
    source, output = builder.tensor([1, 4]), builder.tensor([1, 4])
    builder.operator("SIGN", [source], output, schema.SignOptionsT())
    file = builder.build([source], [output])
    given = samples(4)
    found = evaluator().evaluate(file, TFLITE, given)
    assert found.accuracy == LitertEvaluator().evaluate(file, given)
    assert "SIGN" in found.notes[0]
    assert found.notes[0].startswith("accuracy computed by LiteRT")


@needs_tflm
def test_one_that_does_not_come_back_is_killed_and_litert_judges() -> None:
    given = samples(6)
    found = evaluator(TflmInterpreter(timeout_s=0.001)).evaluate(classifier(), TFLITE, given)
    assert found.accuracy == LitertEvaluator().evaluate(classifier(), given)
    assert "did not finish" in found.notes[0]


def test_without_the_extra_litert_judges_and_a_note_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TflmInterpreter, "is_installed", staticmethod(lambda: False))
    given = samples(6)
    found = evaluator().evaluate(classifier(), TFLITE, given)
    assert found.accuracy == LitertEvaluator().evaluate(classifier(), given)
    assert "tightfit-service[tflm] is not installed" in found.notes[0]


def test_a_note_says_how_far_the_runtimes_are_apart() -> None:
    found = evaluator(Shifted()).evaluate(classifier(), TFLITE, samples(6))
    # of batches of 256 and 44 samples
    assert "differ by up to 0.15, 3 steps" in found.notes[0]
    assert f"on 31 of {COUNT} samples" in found.notes[0]


def test_a_note_says_how_many_classes_change() -> None:
    given = samples(6)
    before = LitertEvaluator().outputs(classifier(), given.inputs(slice(None))).argmax(axis=1)
    changed = int((before[[*range(0, 256, 10), *range(256, COUNT, 10)]] != 0).sum())
    found = evaluator(Shifted(steps=255)).evaluate(classifier(), TFLITE, given)
    assert changed > 5
    assert f"{changed} of which get another class" in found.notes[0]


def test_the_number_of_samples_follows_the_time_by_large_steps() -> None:
    # one millisecond each
    found = evaluator(Shifted(), seconds=0.1).evaluate(classifier(), TFLITE, samples(6))
    assert f"on 64 of {COUNT} samples (1 ms each)" in found.notes[0]


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidDatasetError):
        evaluator(Shifted()).evaluate(classifier(), TFLITE, samples(5))
    with pytest.raises(InvalidDatasetError):
        evaluator(Shifted()).evaluate(classifier(), TFLITE, samples(6, count=0))
    with pytest.raises(InvalidDatasetError):
        evaluator(Shifted()).evaluate(
            classifier(), TFLITE, replace(samples(6), labels=np.full(COUNT, 9))
        )


@pytest.mark.parametrize(
    ("target", "model_format", "is_so"),
    [
        ("arduino-nano-33-ble", ModelFormat.TFLITE, True),
        ("cortex-m55-ethos-u55-128", ModelFormat.TFLITE, True),
        ("arduino-nano-33-ble", ModelFormat.ONNX, False),
        ("frdm-mcxn947", ModelFormat.TFLITE, False),
        ("nucleo-h7a3zi-q", ModelFormat.TFLITE, False),
        ("raspberry-pi-4", ModelFormat.TFLITE, False),
    ],
)
def test_it_is_for_what_tflm_computes_bit_by_bit(
    target: str, model_format: ModelFormat, is_so: bool
) -> None:
    assert evaluator().supports(CATALOGUE.get(target), model_format) is is_so
