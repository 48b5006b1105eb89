"""Low-rank factors of the weights of dense layers and convolutions, by weights or by activations.

All methods minimise the error of the layer's output. Where the second moments C of the inputs are
known, the error of an approximation W' of W is tr((W - W') C (W - W')^T) instead of |W - W'|^2; the
factor that stands last follows in closed form from those before it (reduced-rank regression, Izenman
1975; on activations of convolutions: Zhang et al., "Accelerating very deep convolutional networks for
classification and detection", TPAMI 2016). Factors in front are found after whitening with C, as in
SVD-LLM (Wang et al., ICLR 2025), the successor of ASVD (Yuan et al. 2023).

Weights are (out, in, *kernel) with no kernel axes for dense layers. All arithmetic is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, eigh, solve, solve_triangular

Matrix = npt.NDArray[np.float64]

_HOOI_ROUNDS = 3
"""Higher-order orthogonal iteration gains next to nothing after a few rounds from HOSVD."""
_LEAST_SHRINKAGE = 1e-6
"""Keeps moments invertible where inputs are always zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputMoments:
    """Statistics of what a layer multiplies with its weights: patches of (in, *kernel), flattened.

    Attributes:
        second: Second moments (n, n), about the mean where a bias can take the mean's part; positive
            definite.
        mean: Mean (n,), zero where there is no bias.
    """

    second: Matrix
    mean: Matrix

    @cached_property
    def root(self) -> Matrix:
        """A lower triangular L with L L^T = second."""
        return _root(self.second)


def input_moments(count: int, total: Matrix, products: Matrix, *, centred: bool) -> InputMoments:
    """Return the moments of `count` observed patches, shrunk towards a multiple of the identity.

    Shrinkage is that of the oracle approximating estimator (Chen et al., "Shrinkage algorithms for
    MMSE covariance estimation", 2010): few observations of many inputs say little of most directions.

    Args:
        count: Observed patches, at least 1.
        total: Their sum, (n,).
        products: The sum of their outer products, (n, n).
        centred: Whether a bias can take the mean's part.
    """
    size = len(total)
    mean = total / count if centred else np.zeros(size)
    second = products / count - np.outer(mean, mean)
    trace = float(np.trace(second))
    square = float((second * second).sum())
    spread = square - trace**2 / size
    shrinkage = 1.0
    if spread > 0:
        numerator = (1 - 2 / size) * square + trace**2
        shrinkage = min(1.0, numerator / ((count + 1 - 2 / size) * spread))
    shrinkage = max(shrinkage, _LEAST_SHRINKAGE)
    # inputs that are zero throughout leave the weights alone to decide
    level = trace / size if trace > 0 else 1.0
    shrunk = (1 - shrinkage) * second + shrinkage * level * np.eye(size)
    return InputMoments(second=shrunk, mean=mean)


def largest_ranks(method: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the full ranks of a method (`svd`, `spatial`, `tucker2`) for weights of that shape."""
    out, inner = shape[0], shape[1]
    taps = math.prod(shape[2:])
    if method == "svd":
        return (min(out, inner * taps),)
    if method == "spatial":
        return (min(inner * shape[2], out * shape[3]),)
    return (inner, out)


def factorize(
    method: str, weight: Matrix, ranks: Sequence[int], moments: InputMoments | None = None
) -> list[Matrix]:
    """Return the weights of the chain that replaces a layer, in the order of computation.

    svd: (rank, in, *kernel), (out, rank, 1...): a layer of `rank` outputs, then a pointwise one.
    spatial: (rank, in, kh, 1), (out, rank, 1, kw) (Jaderberg et al., "Speeding up convolutional neural
        networks with low rank expansions", BMVC 2014, scheme 2).
    tucker2: (r_in, in, 1...), (r_out, r_in, *kernel), (out, r_out, 1...) (Kim et al., "Compression of
        deep convolutional neural networks for fast and low power mobile applications", ICLR 2016).
    """
    if method == "svd":
        return _svd(weight, ranks[0], moments)
    if method == "spatial":
        return _spatial(weight, ranks[0], moments)
    return _tucker2(weight, (ranks[0], ranks[1]), moments)


def composed(factors: Sequence[Matrix]) -> Matrix:
    """Return the one weight (out, in, *kernel) that computes what the chain of factors does."""
    result = factors[0]
    for factor in factors[1:]:
        result = _composed_pair(result, factor)
    return result


def relative_error(weight: Matrix, approximation: Matrix, moments: InputMoments | None) -> float:
    """Return the squared error of the output as a share of the output's own square, in [0, 1]."""
    full = weight.reshape(len(weight), -1)
    rest = full - approximation.reshape(full.shape)
    whole, lost = _energy(full, moments), _energy(rest, moments)
    return min(1.0, max(0.0, lost / whole)) if whole > 0 else 0.0


def bias_shift(weight: Matrix, approximation: Matrix, moments: InputMoments) -> Matrix:
    """Return what the bias has to take over, (out,): the mean of what the approximation leaves out."""
    rest = weight.reshape(len(weight), -1) - approximation.reshape(len(weight), -1)
    return np.asarray(rest @ moments.mean)


def energy_ranks(
    method: str, weight: Matrix, tolerances: Sequence[float], moments: InputMoments | None
) -> list[tuple[int, ...]]:
    """Return, per tolerance, the least ranks whose error is about that much (for svd exactly)."""
    if method == "svd":
        lost = _lost(_whitened(weight, moments))
        return [(_rank_within(lost, tolerance),) for tolerance in tolerances]
    if method == "spatial":
        lost = _lost(_columns(weight, moments)[0])
        return [(_rank_within(lost, tolerance),) for tolerance in tolerances]
    whitened = _channels(weight, moments)[0]
    outer = _lost(whitened.reshape(len(whitened), -1))
    inner = _lost(np.moveaxis(whitened, 1, 0).reshape(whitened.shape[1], -1))
    # the errors of the two bases add up at most
    return [
        (_rank_within(inner, tolerance / 2), _rank_within(outer, tolerance / 2))
        for tolerance in tolerances
    ]


def _svd(weight: Matrix, rank: int, moments: InputMoments | None) -> list[Matrix]:
    basis = _left_basis(_whitened(weight, moments), rank)
    first = np.tensordot(basis.T, weight, axes=1)
    return [first, basis.reshape(*basis.shape, *(1,) * (weight.ndim - 2))]


def _spatial(weight: Matrix, rank: int, moments: InputMoments | None) -> list[Matrix]:
    out, inner, height, width = weight.shape
    whitened, root = _columns(weight, moments)
    basis = _left_basis(whitened, rank)
    vertical = _reading(basis, root).reshape(rank, inner, height)
    if moments is None:
        horizontal = np.tensordot(weight, vertical, axes=((1, 2), (1, 2))).swapaxes(1, 2)
    else:
        first = vertical.reshape(rank, -1)
        horizontal = _regression(weight.reshape(out, -1), first, moments)[0]
    return [vertical[..., None], horizontal.reshape(out, rank, 1, width)]


def _tucker2(weight: Matrix, ranks: tuple[int, int], moments: InputMoments | None) -> list[Matrix]:
    out, inner = weight.shape[:2]
    kernel = weight.shape[2:]
    taps = math.prod(kernel)
    whitened, root = _channels(weight, moments)
    basis = _hooi_input_basis(whitened.reshape(out, inner, taps), ranks)
    reduce = _reading(basis, root)
    if moments is None:
        middle = np.tensordot(weight.reshape(out, inner, taps), reduce, axes=(1, 1))
        middle = middle.swapaxes(1, 2).reshape(out, -1)
        expand = _left_basis(middle, ranks[1])
    else:
        middle, read_root = _regression(weight.reshape(out, -1), reduce, moments)
        expand = _left_basis(middle @ read_root, ranks[1])
    core = (expand.T @ middle).reshape(ranks[1], ranks[0], *kernel)
    ones = (1,) * len(kernel)
    return [reduce.reshape(ranks[0], inner, *ones), core, expand.reshape(out, ranks[1], *ones)]


def _hooi_input_basis(weight: Matrix, ranks: tuple[int, int]) -> Matrix:
    """Return the orthonormal input basis (in, r_in) of a Tucker-2 decomposition of (out, in, taps)."""
    inner = _left_basis(weight.swapaxes(0, 1).reshape(weight.shape[1], -1), ranks[0])
    for _ in range(_HOOI_ROUNDS):
        reduced = np.tensordot(weight, inner, axes=(1, 0))
        outer = _left_basis(reduced.reshape(len(weight), -1), ranks[1])
        projected = np.tensordot(weight, outer, axes=(0, 0))
        inner = _left_basis(projected.reshape(weight.shape[1], -1), ranks[0])
    return inner


def _whitened(weight: Matrix, moments: InputMoments | None) -> Matrix:
    """Return weights (out, n) times a root of the inputs' moments."""
    flat = weight.reshape(len(weight), -1)
    return flat if moments is None else np.asarray(flat @ moments.root)


def _columns(weight: Matrix, moments: InputMoments | None) -> tuple[Matrix, Matrix | None]:
    """Return weights as (in * kh, out * kw), whitened, and the root L of the columns' moments."""
    out, inner, height, width = weight.shape
    flat = weight.transpose(1, 2, 0, 3).reshape(inner * height, out * width)
    if moments is None:
        return flat, None
    blocks = moments.second.reshape(inner * height, width, inner * height, width)
    root = _root(np.einsum("awbw->ab", blocks) / width)
    return np.asarray(root.T @ flat), root


def _channels(weight: Matrix, moments: InputMoments | None) -> tuple[Matrix, Matrix | None]:
    """Return weights with whitened input channels, and the root L of the channels' moments."""
    if moments is None:
        return weight, None
    inner, taps = weight.shape[1], math.prod(weight.shape[2:])
    blocks = moments.second.reshape(inner, taps, inner, taps)
    root = _root(np.einsum("atbt->ab", blocks) / taps)
    return np.moveaxis(np.tensordot(weight, root, axes=(1, 0)), -1, 1), root


def _reading(basis: Matrix, root: Matrix | None) -> Matrix:
    """Return the map (rank, n) onto a basis (n, rank) that was found on inputs whitened by `root`."""
    if root is None:
        return basis.T
    return np.asarray(solve_triangular(root, basis, lower=True, trans="T").T)


def _regression(weight: Matrix, first: Matrix, moments: InputMoments) -> tuple[Matrix, Matrix]:
    """Return the best weights behind a first layer, and a root of the moments of what they read.

    Args:
        weight: The layer to approximate, (out, m * taps).
        first: Weights of the first layer, (rank, m); it is applied at each of the taps alike.
        moments: Of the patches (m, taps).

    Returns:
        Weights (out, rank * taps) and a lower Cholesky factor of that size.
    """
    rank, size = first.shape
    taps = weight.shape[1] // size
    blocks = moments.second.reshape(size, taps, size, taps)
    covered = np.tensordot(first, blocks, axes=1)
    seen = np.tensordot(covered, first, axes=(2, 1)).swapaxes(2, 3).reshape(rank * taps, -1)
    covered = covered.reshape(rank * taps, -1)
    fitted = solve(seen, covered @ weight.T, assume_a="pos").T
    return fitted, _root(seen)


def _left_basis(matrix: Matrix, rank: int) -> Matrix:
    """Return the `rank` leading left singular vectors (rows, rank), orthonormal to rounding."""
    rows, columns = matrix.shape
    if rows <= columns:
        return _leading(matrix @ matrix.T, rank)
    # From the smaller product; directions beyond the matrix' own rank are completed by QR.
    right = _leading(matrix.T @ matrix, min(rank, columns))
    if rank <= columns:
        return np.linalg.qr(matrix @ right)[0]
    return np.linalg.qr(matrix @ right, mode="complete")[0][:, :rank]


def _leading(gram: Matrix, rank: int) -> Matrix:
    size = len(gram)
    _, vectors = eigh(gram, subset_by_index=(size - rank, size - 1))
    return np.asarray(vectors[:, ::-1])


def _lost(matrix: Matrix) -> Matrix:
    """Return the share of a matrix' squared singular values that rank 1, 2, ... leaves out."""
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = np.clip(eigh(gram, eigvals_only=True)[::-1], 0.0, None)
    return 1 - np.cumsum(values) / max(float(values.sum()), 1e-300)


def _rank_within(lost: Matrix, tolerance: float) -> int:
    return int(np.argmax(lost <= tolerance)) + 1


def _root(moments: Matrix) -> Matrix:
    """Return the lower Cholesky factor of positive definite moments."""
    return np.asarray(cholesky(moments, lower=True))


def _energy(weight: Matrix, moments: InputMoments | None) -> float:
    if moments is None:
        return float((weight * weight).sum())
    return float(((weight @ moments.second) * weight).sum())


def _composed_pair(first: Matrix, second: Matrix) -> Matrix:
    """Return the weight of two layers in a row, one of which is 1 wide along each kernel axis."""
    if first.ndim == 2:
        return second @ first
    kernel = tuple(max(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    left = np.broadcast_to(first, (*first.shape[:2], *kernel))
    right = np.broadcast_to(second, (*second.shape[:2], *kernel))
    # matrix products per tap
    taps = np.moveaxis(right, (0, 1), (-2, -1)) @ np.moveaxis(left, (0, 1), (-2, -1))
    return np.asarray(np.moveaxis(taps, (-2, -1), (0, 1)))
