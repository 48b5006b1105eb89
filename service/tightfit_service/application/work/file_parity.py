"""Comparison of an exported file's outputs with those of the graph that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tightfit_service.application.ports import Evaluator, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import ParityError
from tightfit_service.domain.hardware import NumberFormat

NOISE_LIMITS: Mapping[NumberFormat, float] = {
    NumberFormat.FLOAT16: 1e-3,
    NumberFormat.BFLOAT16: 1e-2,
    NumberFormat.INT16X8: 0.1,
    NumberFormat.INT8: 0.5,
    NumberFormat.INT4: 1.0,
}
"""Largest errors of outputs, as shares of their variance, that rounding to a format explains. A file
that ignores its input has 1. Sound networks have 1e-6 in float16, 1e-4 in bfloat16, 1e-3 in int16x8,
0.0001 to 0.1 in int8 and 0.01 to 0.5 in int4; from one half on (a signal-to-noise ratio under 3 dB)
more is noise than could be repaired, which int4 without training may come to."""

COMPARED_SAMPLES = 64
_FLOAT_TOLERANCE = 1e-3
"""Of the largest output: other kernels sum in another order, which costs 1e-6 to 1e-4 in float32."""
_HELD_OUT_SLACK = 2.0
"""Times the noise that is allowed on samples which ranges were not calibrated on. What is lost between
the two is told by the accuracy."""


def noise_limit_of(settings: QuantizationSettings) -> float | None:
    """Return the limit of the coarsest format in a file; None where all is in float32."""
    used = {settings.number_format, *settings.node_formats.values()}
    return max((NOISE_LIMITS[item] for item in used if item in NOISE_LIMITS), default=None)


def held_out(
    *,
    graph: bytes,
    of_graph: Evaluator,
    file: bytes,
    of_file: Evaluator,
    samples: Samples,
    names: Sequence[str],
    settings: QuantizationSettings,
) -> Mapping[str, float]:
    """Compare the first outputs of a file and of its graph on up to 64 samples of a set, evenly spread.

    Args:
        graph: What the recipe led to, in float.
        of_graph: Runs it.
        file: What was exported of it.
        of_file: Runs it, in its own runtime.
        samples: That nothing was calibrated or trained on.
        names: Inputs of both.
        settings: Number formats of the file.

    Raises:
        ParityError: They differ by more than the number formats explain; says how much.
    """
    count = min(COMPARED_SAMPLES, len(samples))
    places = np.unique(np.linspace(0, len(samples) - 1, count).astype(np.int64))
    feeds = samples.feeds(places, names)
    limit = noise_limit_of(settings)
    return check_outputs(
        [of_graph.outputs(graph, feeds)],
        [of_file.outputs(file, feeds)],
        is_quantized=limit is not None,
        noise_limit=_HELD_OUT_SLACK * (limit or 0.0),
    )


def check_outputs(
    expected: Sequence[npt.NDArray[np.float32]],
    exported: Sequence[npt.NDArray[np.float32]],
    *,
    is_quantized: bool,
    noise_limit: float = NOISE_LIMITS[NumberFormat.INT8],
) -> Mapping[str, float]:
    """Return how far the exported outputs are from the expected ones, each output shape (n, ...).

    Figures are the worst over the outputs: `max_abs_diff` and `mean_abs_diff` relative to the
    standard deviation of the expected output, `noise_ratio` (mean squared difference over variance),
    and `top1_agreement` of the first output where it has classes.

    Raises:
        ParityError: Another number or shape of outputs, NaN, or a difference beyond what float32
            rounding (or `noise_limit`, when `is_quantized`) explains; says how much.
    """
    if len(expected) != len(exported):
        raise _broken(f"has {len(exported)} outputs, the graph {len(expected)}")
    figures: dict[str, float] = {}
    for index, (ours, theirs) in enumerate(zip(expected, exported, strict=True)):
        if ours.size != theirs.size or len(ours) != len(theirs):
            raise _broken(f"gives shape {theirs.shape} for output {index}, the graph {ours.shape}")
        if not np.isfinite(theirs).all():
            raise _broken(f"gives NaN or infinite values in output {index}")
        difference = theirs.reshape(ours.shape).astype(np.float64) - ours.astype(np.float64)
        peak = float(np.abs(ours).max(initial=0.0))
        # An output that hardly varies is compared with its size instead.
        variance = max(float(ours.astype(np.float64).var()), (1e-3 * peak) ** 2, 1e-24)
        worst = float(np.abs(difference).max(initial=0.0))
        noise = float((difference**2).mean()) / variance
        if not is_quantized and worst > _FLOAT_TOLERANCE * max(peak, 1e-6):
            raise _broken(
                f"differs by {worst:.3g} in output {index}, whose largest value is {peak:.3g}"
            )
        if is_quantized and noise > noise_limit:
            raise _broken(
                f"has errors of {noise:.2f} times the variance of output {index}, "
                f"more than {noise_limit}"
            )
        for key, value in (
            ("max_abs_diff", worst / variance**0.5),
            ("mean_abs_diff", float(np.abs(difference).mean()) / variance**0.5),
            ("noise_ratio", noise),
        ):
            figures[key] = max(value, figures.get(key, 0.0))
    first, second = (outputs[0].reshape(len(outputs[0]), -1) for outputs in (expected, exported))
    if first.shape[1] > 1:
        agreement = (first.argmax(axis=1) == second.argmax(axis=1)).mean()
        figures["top1_agreement"] = float(agreement)
    return figures


def _broken(what: str) -> ParityError:
    return ParityError(
        f"the exported file {what}",
        field="model",
        remedy="keep the sensitive nodes in float, or export in float32",
    )
