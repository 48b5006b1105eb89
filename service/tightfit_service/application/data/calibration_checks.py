"""Checks of calibration samples: what makes ranges impossible is refused, what makes them poor is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidDatasetError

_CROWDED = 0.1
"""Share of values at one end of the range from which they look clipped; photographs have some percent."""
_NORMALISED_PEAK = 50.0
"""Largest magnitude expected behind a declared mean and standard deviation; images reach about 3."""
_NORMALISED_FLOOR = 0.05
_BATCH = 32


@dataclass
class InputCheck:
    """Streams over the batches of one model input; call `add` for each and then `notes`.

    Attributes:
        name: For messages: the input, or "" where the model has one only.
        is_normalised: Whether the dataset declares a mean or a standard deviation.
        background: The input that a stored zero becomes, which may well be frequent.
    """

    name: str = ""
    is_normalised: bool = False
    background: float = 0.0
    _seen: int = 0
    _values: int = 0
    _low: float = np.inf
    _high: float = -np.inf
    _at_low: int = 0
    _at_high: int = 0
    _first: npt.NDArray[np.float32] | None = None
    _differs: bool = False

    def add(self, inputs: npt.NDArray[np.float32]) -> None:
        """Look at a batch of model inputs, shape (n, ...).

        Raises:
            InvalidDatasetError: A value that is not finite; names the sample.
        """
        if not inputs.size:
            return
        flat = inputs.reshape(len(inputs), -1)
        if not np.isfinite(flat.sum(dtype=np.float64)):
            bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
            if len(bad):
                raise self._not_finite(self._seen + int(bad[0]))
        low, high = float(flat.min()), float(flat.max())
        self._at_low = (self._at_low if self._low <= low else 0) + (
            int((flat == low).sum()) if low <= self._low else 0
        )
        self._at_high = (self._at_high if self._high >= high else 0) + (
            int((flat == high).sum()) if high >= self._high else 0
        )
        self._low, self._high = min(self._low, low), max(self._high, high)
        if self._first is None:
            self._first = flat[0].copy()
        self._differs = self._differs or bool((flat != self._first).any())
        self._seen += len(inputs)
        self._values += inputs.size

    def notes(self) -> tuple[str, ...]:
        """Return one sentence for each thing that makes ranges found on these samples doubtful."""
        if not self._values:
            return ()
        what = f"calibration input {self.name!r}" if self.name else "the calibration input"
        if self._low == self._high:
            return (f"{what} is {self._low:g} everywhere: ranges found on it mean nothing",)
        found = []
        if self._seen > 1 and not self._differs:
            found.append(f"{what} is the same in all {self._seen} samples")
        for count, end, word in (
            (self._at_high, self._high, "greatest"),
            (0 if self._is_background(self._low) else self._at_low, self._low, "least"),
        ):
            if count > _CROWDED * self._values:
                found.append(
                    f"{what} saturates: {count / self._values:.0%} of its values are at its "
                    f"{word}, {end:g}"
                )
        peak = max(abs(self._low), abs(self._high))
        if self.is_normalised and not _NORMALISED_FLOOR <= peak <= _NORMALISED_PEAK:
            found.append(
                f"{what} reaches {peak:g} behind the declared mean and standard deviation, "
                "which bring data to about 3: check scale, mean and std"
            )
        return tuple(found)

    def _is_background(self, value: float) -> bool:
        return bool(np.isclose(value, self.background, rtol=1e-4, atol=1e-6))

    def _not_finite(self, index: int) -> InvalidDatasetError:
        of_input = f" of input {self.name!r}" if self.name else ""
        return InvalidDatasetError(
            f"calibration sample {index} has NaN or infinite values{of_input}",
            field="calibration",
            remedy="remove the sample, or mend its values",
        )


def checked_inputs(samples: Samples, names: Sequence[str]) -> tuple[str, ...]:
    """Look at all inputs of calibration samples and return notes on what makes them poor.

    Args:
        samples: What activation ranges are to be found on.
        names: Inputs of the model, in order.

    Raises:
        InvalidDatasetError: A value that is not finite (names the sample), or other inputs than the
            model has.
    """
    stored = list(samples.by_input.values())
    if len(names) > 1:
        stored = [samples.by_input[name] for name in names if name in samples.by_input]
    checks: dict[str, InputCheck] = {}
    for name, source in zip(names, stored, strict=False):
        mean, std = source.preprocess.mean, source.preprocess.std
        checks[name] = InputCheck(
            name=name if len(names) > 1 else "",
            is_normalised=any(mean) or any(s != 1.0 for s in std or ()),
            background=min((-m / s for m, s in zip(mean, std, strict=False)), default=0.0),
        )
    for feeds, _ in samples.feed_batches(_BATCH, names):
        for name, values in feeds.items():
            checks[name].add(values)
    return tuple(note for check in checks.values() for note in check.notes())
