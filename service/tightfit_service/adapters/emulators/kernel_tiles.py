"""What a matrix kernel computes at a time, whether it is needed or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tightfit_service.adapters.emulators.multiples import next_multiple


@dataclass(frozen=True)
class Tile:
    """What a matrix kernel computes at a time; what does not fill it takes as long as if it did.

    XNNPACK's `xnn_f32_igemm_minmax_ukernel_7x32__avx512f_broadcast` computes 7 pixels of 32 channels at a time,
    its kernels named `7x16c8` add up 8 products of 8 bits at once, and convolutions of fewer channels than a
    kernel computes go to a narrower one (`gemm_nr2` in its `src/operators/convolution-nhwc.c`).

    Attributes:
        rows: Of the output. One alone has a kernel of its own in every library.
        columns: Of the output: channels.
        narrow: Columns of the kernel for products of fewer than `columns`.
        depth: Products that are added up at once; per tap of a convolution.
    """

    rows: int = 1
    columns: int = 1
    narrow: int = 1
    depth: int = 1

    def whole_rows(self, rows: int) -> int:
        """Return how many rows are computed for so many."""
        return rows if rows == 1 else next_multiple(rows, self.rows)

    def whole_columns(self, columns: int) -> int:
        """Return how many columns are computed for so many."""
        return next_multiple(columns, self.narrow if columns < self.columns else self.columns)

    def whole_depth(self, depth: float, taps: int) -> int:
        """Return how many products are added up for so many, which several taps share."""
        return taps * next_multiple(math.ceil(depth / taps), self.depth)


Tiles = Mapping[str, Tile]
"""By the name of a product's kind."""
