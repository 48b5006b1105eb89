"""The start of quantization-aware training: ranges of activations as calibration finds them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from tightfit_service.adapters.training.fake_quantization import FakeQuantization
from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.preparation import Student
from tightfit_service.adapters.training.quantization_plan import plan_quantization
from tightfit_service.application.data.activation_ranges import calibrate
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples

_SAMPLES = 256
_BATCH = 32


def rounding_of(
    student: Student,
    learner: Learner,
    train: Samples,
    settings: QuantizationSettings,
    *,
    seed: int,
) -> FakeQuantization:
    """Return the rounding of a student's exported file, on the learner's device.

    Ranges are those that quantization without training would take: of the float network, on
    some training samples, by the method in `settings`.

    Raises:
        InvalidRequestError: A format for a node that the graph does not have, an unknown
            method, or activations that are not finite.
    """
    plan = plan_quantization(student, settings)
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(train))[:_SAMPLES])
    names = list(plan.activations)

    def batches() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        learner.module.eval()
        for start in range(0, len(chosen) if names else 0, _BATCH):
            inputs = train.inputs(chosen[start : start + _BATCH]) / np.float32(learner.input_scale)
            with torch.inference_mode():
                values = learner.module.run_to(names, learner.form.inputs(inputs))
            yield {
                name: np.ascontiguousarray(value.float().cpu().numpy())
                for name, value in zip(names, values, strict=True)
            }

    spans = calibrate(batches, method=settings.method, percentile=settings.percentile)
    ranges = {name: (span.low, span.high) for name, span in spans.items()}
    return FakeQuantization(plan, learner.module, ranges).to(learner.form.device)
