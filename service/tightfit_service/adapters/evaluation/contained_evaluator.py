"""Evaluator of artifacts that are judged by a file inside of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tightfit_service.application.ports import Evaluator
from tightfit_service.application.samples import ModelInputs, Samples
from tightfit_service.domain.quantities import Accuracy


class ContainedEvaluator:
    """Runs the file inside an artifact in that file's runtime (`ports.Evaluator`)."""

    def __init__(self, *, file_in: Callable[[bytes], bytes], evaluator: Evaluator) -> None:
        """Keep how the file is taken out, and what evaluates it.

        Args:
            file_in: Returns the file in an artifact; raises InvalidModelError for other artifacts.
            evaluator: Of the file's format.
        """
        self._file_in = file_in
        self._evaluator = evaluator

    def outputs(self, data: bytes, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """Return the first output for float inputs in working layout, shape (n, ...).

        Raises:
            InvalidModelError: Not such an artifact, or a file that does not run.
        """
        return self._evaluator.outputs(self._file_in(data), inputs)

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        """Return the metric that the samples declare."""
        return self._evaluator.evaluate(self._file_in(data), samples)
