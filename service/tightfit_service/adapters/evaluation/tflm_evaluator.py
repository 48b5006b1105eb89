"""Evaluator of TFLite files in the interpreter of TensorFlow Lite for Microcontrollers (TFLM).

The interpreter's reference kernels give the bits that a device gives (see `emulators.tflm_interpreter`). They
are slow, so where a whole set would take too long a part of it is run there and the rest in LiteRT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tightfit_service.adapters.emulators.mcu_latency import runtime_path
from tightfit_service.adapters.emulators.tflm_interpreter import EXTRA, TflmInterpreter
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator, LitertRunner
from tightfit_service.adapters.evaluation.metrics import evaluate_metric
from tightfit_service.application.ports import TargetAccuracy
from tightfit_service.application.samples import FloatArray, IntArray, Samples
from tightfit_service.domain.dataset import Task
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.hardware import AcceleratorKind, HardwareSpec, ModelFormat

Outputs = npt.NDArray[np.float32]

SECONDS = 30.0
"""What each process of the interpreter may compute for, per evaluation."""
PROBED = 4
"""Samples that its speed is measured on."""
COUNTS = (4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8)
"""Samples that are run in it where there is no time for all: few steps, so that machines of about the same
speed take the same ones."""
ETHOS_U = frozenset(
    {AcceleratorKind.ETHOS_U55, AcceleratorKind.ETHOS_U65, AcceleratorKind.ETHOS_U85}
)
"""Accelerators whose operators agree bit by bit with the reference kernels (see `formats.vela_export`)."""

_BATCH = 256
_FLOAT_TOLERANCE = 1e-4
"""Of the largest output of floats: other kernels sum in another order."""


class TflmEvaluator:
    """Evaluates files for targets that run them in TFLM (`ports.TargetEvaluator`).

    Which samples are run there depends on the speed of the machine where there is no time for all; what
    is found then differs by no more than the two runtimes do.
    """

    def __init__(
        self,
        *,
        files: Mapping[ModelFormat, Callable[[bytes], bytes]],
        interpreter: TflmInterpreter | None = None,
        threads: int = 1,
        seconds: float = SECONDS,
    ) -> None:
        """Keep the settings.

        Args:
            files: Returns the TFLite file in an artifact, by its format.
            interpreter: Runs the files.
            threads: Threads of LiteRT for one call, and processes of the interpreter at a time.
            seconds: What each of these may compute for, per evaluation; `PROBED` samples run anyway.
        """
        self._files = files
        self._interpreter = interpreter or TflmInterpreter(timeout_s=max(60.0, 4 * seconds))
        self._threads = threads
        self._seconds = seconds

    def supports(self, target: HardwareSpec, model_format: ModelFormat) -> bool:
        """Whether TFLM computes the whole network on the target, but for what Ethos-U does."""
        path = runtime_path(target.runtime.name, target.runtime.version)
        accelerator = target.accelerator
        is_exact = accelerator is None or accelerator.kind in ETHOS_U
        return path[0] == "tflm" and is_exact and model_format in self._files

    def evaluate(self, data: bytes, model_format: ModelFormat, samples: Samples) -> TargetAccuracy:
        """Return the metric that the samples declare.

        Raises:
            InvalidModelError: LiteRT does not run the file.
            InvalidDatasetError: Samples have no labels, or shapes or labels do not fit the model.
        """
        file = self._files[model_format](data)
        if not self._interpreter.is_installed():
            return self._by_litert(file, samples, f"{EXTRA} is not installed here")
        try:
            return self._by_both(file, samples)
        except InvalidModelError as error:
            return self._by_litert(file, samples, error.message)

    def _by_litert(self, file: bytes, samples: Samples, reason: str) -> TargetAccuracy:
        return TargetAccuracy(
            accuracy=LitertEvaluator(threads=self._threads).evaluate(file, samples),
            notes=(f"accuracy computed by LiteRT and not as the target's TFLM does: {reason}",),
        )

    def _by_both(self, file: bytes, samples: Samples) -> TargetAccuracy:
        runner = LitertRunner(file, threads=self._threads)
        chosen, milliseconds = self._chosen(file, runner, samples)
        run = _BothRuntimes(
            file=file,
            runner=runner,
            interpreter=self._interpreter,
            processes=self._threads,
            chosen=chosen,
            has_classes=samples.task is Task.CLASSIFICATION,
        )
        accuracy = evaluate_metric(run, samples, batch_size=_BATCH)
        part = f"all {len(samples)} samples"
        if len(chosen) < len(samples):
            part = (
                f"{len(chosen)} of {len(samples)} samples ({milliseconds:.2g} ms each), "
                "on the others by LiteRT"
            )
        note = f"accuracy computed by TFLM's interpreter on {part}; {run.comparison()}"
        return TargetAccuracy(accuracy=accuracy, notes=(note,))

    def _chosen(
        self, file: bytes, runner: LitertRunner, samples: Samples
    ) -> tuple[IntArray, float]:
        """Return the samples that the interpreter has time for, and the milliseconds that one takes."""
        probed = _spread(len(samples), PROBED)
        if not len(probed):
            return probed, 0.0
        inputs = runner.stored(samples.feeds(probed, list(samples.by_input)))
        each = self._interpreter.run(file, *inputs).seconds / len(probed)
        most = self._threads * self._seconds / max(each, 1e-9)
        count = len(samples)
        if count > most:
            count = next((step for step in COUNTS if step <= most), PROBED)
        return _spread(len(samples), count), each * 1e3


@dataclass(kw_only=True)
class _BothRuntimes:
    """Maps batches to outputs, in the order of the samples: TFLM's of the chosen ones, else LiteRT's."""

    file: bytes
    runner: LitertRunner
    interpreter: TflmInterpreter
    processes: int
    chosen: IntArray
    has_classes: bool
    _begin: int = 0
    _different: int = 0
    _beyond: int = 0
    _renamed: int = 0
    _largest: float = 0.0

    def __call__(self, inputs: Mapping[str, FloatArray]) -> Outputs:
        """Return the first outputs of the next batch."""
        outputs = self.runner.run(inputs)[0]
        end = self._begin + len(outputs)
        places = self.chosen[(self.chosen >= self._begin) & (self.chosen < end)] - self._begin
        self._begin = end
        if not len(places):
            return outputs
        part = self.runner.stored({name: values[places] for name, values in inputs.items()})
        exact = self.runner.restored(self._exact(part))
        self._compare(outputs[places], exact)
        outputs = np.array(outputs)
        outputs[places] = exact
        return outputs

    def comparison(self) -> str:
        """Return in words how far the two runtimes' outputs of the chosen samples are apart."""
        step = self.runner.output_step
        if not self._different:
            return "LiteRT gives the same outputs"
        if not self._beyond:
            apart = "one step of quantization" if step else "rounding of floats"
            return f"LiteRT's outputs differ by no more than {apart}"
        far = f"up to {self._largest:.3g}"
        if step:
            far += f", {self._largest / step:.0f} steps of quantization, and by more than one"
        renamed = f", {self._renamed} of which get another class" if self._renamed else ""
        return f"LiteRT's outputs differ by {far} on {self._beyond} of {len(self.chosen)} samples{renamed}"

    def _exact(self, inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return what the file computes, in its own number format; one process for each part."""
        parts = np.array_split(np.arange(len(inputs[0])), min(self.processes, len(inputs[0])))
        with ThreadPoolExecutor(len(parts)) as pool:
            runs = pool.map(
                lambda part: self.interpreter.run(self.file, *(values[part] for values in inputs)),
                parts,
            )
            return np.concatenate([run.outputs for run in runs])

    def _compare(self, litert: Outputs, exact: Outputs) -> None:
        far = np.abs(litert - exact).reshape(len(exact), -1).max(axis=1)
        step = self.runner.output_step
        # half a step more, for scales are no exact binary fractions
        allowed = 1.5 * step if step else _FLOAT_TOLERANCE * float(np.abs(exact).max(initial=0.0))
        self._different += int((far > 0).sum())
        self._beyond += int((far > allowed).sum())
        self._largest = max(self._largest, float(far.max(initial=0.0)))
        if self.has_classes and exact.ndim > 1:
            names = [values.reshape(len(values), -1).argmax(axis=1) for values in (litert, exact)]
            self._renamed += int(((names[0] != names[1]) & (far > allowed)).sum())


def _spread(count: int, wanted: int) -> IntArray:
    """Return the indices of so many samples, evenly spread over all."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(np.int64))
