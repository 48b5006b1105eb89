"""Cells that a layer table leaves out: derived from the others of their row, or refused. None is read as 0.

What follows from other cells is exact, but for the sides of a kernel, which is taken to be square where
its area is a square number; for the window of a pooling, taken to cover its input without overlap; and for
biases, taken to be one per output channel, as converters write them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tightfit_service.domain.errors import InvalidModelError

SIZES = ("in_h", "in_w", "in_c", "out_h", "out_w", "out_c")
NUMBERS = (*SIZES, "macs", "kernel_h", "kernel_w", "stride", "weights", "biases")
_CHECKED = (*NUMBERS, "activation_in_bytes_int8", "const_bytes")
MOST = 2**50
"""Above the figures of any network; products of such stay whole numbers all the same."""

_POOLS = frozenset({"AVERAGE_POOL_2D", "MAX_POOL_2D"})
_KERNELS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})
_DENSE = "FULLY_CONNECTED"
_BIAS_BYTES = 4
_WRITE_ZERO = "write it, 0 where the operator has none"


class Row(dict[str, str]):
    """A row of a table; columns that the table lacks are empty."""

    def __missing__(self, key: str) -> str:
        return ""


def count(text: str) -> int:
    """Return a cell as a whole number."""
    return round(float(text or 0))


def completed(row: Row, line: int, *, weightless: frozenset[str]) -> Row:
    """Return the row with a number in every cell of `NUMBERS` and in `const_bytes`.

    Args:
        row: As it stands in the table.
        line: Of the table, for messages.
        weightless: Operators that have neither weights nor multiplications.

    Raises:
        InvalidModelError: A cell is no such number, or empty and does not follow from the others.
    """
    cells = _Cells(row, line)
    cells.check()
    cells.check_shapes()
    operator = row["op"]
    found = {name: count(row[name]) for name in NUMBERS if row[name]}
    for name in ("kernel_h", "kernel_w", "stride"):
        if found.get(name) == 0:  # how tables write that there is none
            del found[name]
    if operator in _KERNELS:
        _complete_kernel(operator, found, cells)
    elif operator == _DENSE:
        _complete_dense(found)
    elif operator in weightless:
        for name in ("macs", "weights", "biases"):
            found.setdefault(name, 0)
    for name in ("macs", "weights", "biases"):
        if name not in found:
            raise cells.missing(name, _WRITE_ZERO)
    _complete_window(operator, found)
    if not row["const_bytes"]:
        row["const_bytes"] = str(found["weights"] + _BIAS_BYTES * found["biases"])
    return Row({**row, **{name: str(cells.bounded(name, found[name])) for name in NUMBERS}})


class _Cells:
    """A row and where it stands."""

    def __init__(self, row: Mapping[str, str], line: int) -> None:
        self._row = row
        self._line = line

    def check(self) -> None:
        """Check that what is there is a number."""
        for name in _CHECKED:
            try:
                value = float(self._row[name] or 0)
            except ValueError:
                value = math.nan
            if not 0 <= value <= MOST:
                raise self.wrong(name, "write a number that is not negative")

    def check_shapes(self) -> None:
        """Check that the operator and all sizes are there."""
        if not self._row["op"]:
            raise self.missing("op", "write the operator of TensorFlow Lite, such as CONV_2D")
        for name in SIZES:
            if not self._row[name]:
                raise self.missing(name, "write the shapes that the layer reads and writes")
            if not count(self._row[name]):
                raise self.wrong(name, "write a number above 0; 1 for what the tensor has not")

    def bounded(self, name: str, value: int) -> int:
        """Refuse what is derived from sizes that no network has."""
        if value > MOST:
            raise InvalidModelError(
                f"line {self._line} of the layer table makes {name} more than any network has",
                field=f"layers.{name}",
                remedy="check the sizes of the layer",
            )
        return value

    def wrong(self, name: str, remedy: str) -> InvalidModelError:
        """Return the error for a cell that cannot be."""
        return InvalidModelError(
            f"line {self._line} of the layer table has {name} {self._row[name]!r}",
            field=f"layers.{name}",
            remedy=remedy,
        )

    def missing(self, name: str, remedy: str) -> InvalidModelError:
        """Return the error for a cell that is empty."""
        operator = self._row["op"] or "a layer"
        return InvalidModelError(
            f"line {self._line} of the layer table ({operator}) has no {name}",
            field=f"layers.{name}",
            remedy=remedy,
        )


def _complete_kernel(operator: str, found: dict[str, int], cells: _Cells) -> None:
    """Derive multiplications, weights and kernel of a convolution from one another."""
    side = "in" if operator == "TRANSPOSE_CONV" else "out"
    positions = found[f"{side}_h"] * found[f"{side}_w"]
    # weights at one place of the kernel; groups of a convolution show in its weights only
    channels = found["out_c"]
    if operator != "DEPTHWISE_CONV_2D":
        channels *= found["in_c"]
    if "weights" not in found and found.get("macs"):
        found["weights"] = round(found["macs"] / positions)
    if "weights" not in found and {"kernel_h", "kernel_w"} <= found.keys():
        found["weights"] = found["kernel_h"] * found["kernel_w"] * channels
    if "weights" not in found:
        remedy = "write macs or weights, or kernel_h and kernel_w"
        raise cells.missing("macs" if "macs" not in found else "weights", remedy)
    found.setdefault("macs", found["weights"] * positions)
    found.setdefault("biases", found["out_c"])
    for name, other in (("kernel_h", "kernel_w"), ("kernel_w", "kernel_h")):
        if name not in found:
            found[name] = _kernel_side(found["weights"], channels, found.get(other))
            if not found[name]:
                raise cells.missing(name, "write kernel_h and kernel_w: they do not follow")


def _kernel_side(weights: int, channels: int, other: int | None) -> int:
    """Return a side of the kernel, 0 where it cannot be told."""
    area, rest = divmod(weights, channels)
    if rest or not area:
        return 0
    if other:
        return area // other if area % other == 0 else 0
    root = math.isqrt(area)
    return root if root * root == area else 0


def _complete_dense(found: dict[str, int]) -> None:
    """Derive multiplications and weights of a dense layer from one another and from the shapes."""
    positions = found["out_h"] * found["out_w"]
    if "weights" not in found:
        read = found["in_h"] * found["in_w"] * found["in_c"]
        by_shape = max(1, read // positions) * found["out_c"]
        found["weights"] = round(found["macs"] / positions) if found.get("macs") else by_shape
    found.setdefault("macs", found["weights"] * positions)
    found.setdefault("biases", found["out_c"])


def _complete_window(operator: str, found: dict[str, int]) -> None:
    """Derive how a window moves, and that of a pooling; other operators have none."""
    for side, kernel in (("h", "kernel_h"), ("w", "kernel_w")):
        covering = math.ceil(found[f"in_{side}"] / found[f"out_{side}"])
        found.setdefault(kernel, covering if operator in _POOLS else 1)
    shrinks = found["in_h"] / found["out_h"]
    moves = {"TRANSPOSE_CONV": 1 / shrinks}.get(operator, shrinks)
    has_window = operator in _POOLS or operator in _KERNELS
    found.setdefault("stride", max(1, round(moves)) if has_window else 1)
