"""Properties of weights that training must not lose: zeros of sparsity, equal values of clustering."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from tightfit_service.adapters.training.module import GraphModule


@dataclass(frozen=True, kw_only=True)
class _Tied:
    """A weight with what it keeps.

    Attributes:
        mask: 0 where the weight stays zero, else 1; None where it has no zeros to keep.
        clusters: Number of the cluster of each value, flattened; None where all may differ.
        sizes: Values per cluster.
    """

    weight: torch.nn.Parameter
    mask: torch.Tensor | None
    clusters: torch.Tensor | None
    sizes: torch.Tensor

    def project(self, value: torch.Tensor) -> None:
        """Bring a weight or its gradient to the nearest one that keeps what is to be kept."""
        if self.clusters is not None:
            flat = value.reshape(-1).double()
            sums = torch.zeros_like(self.sizes).index_add_(0, self.clusters, flat)
            value.copy_((sums / self.sizes)[self.clusters].reshape(value.shape))
        if self.mask is not None:
            value.mul_(self.mask)

    def to(self, device: str) -> _Tied:
        """Return the same on a device, where the module already is."""
        return replace(
            self,
            mask=None if self.mask is None else self.mask.to(device),
            clusters=None if self.clusters is None else self.clusters.to(device),
            sizes=self.sizes.to(device),
        )


class WeightConstraints:
    """Holds zeros and equal values of a graph's weights through the steps of an optimiser.

    The gradient is projected before a step: of zeros it is zero, of equal values it is the sum over
    them (Deep Compression; Han et al., ICLR 2016) divided by their number, for a step that moves n
    weights at once would else be n times too long. The weight is projected after the step, so that
    no rounding adds up. Weights with less than two axes (biases, scales) are free.
    """

    def __init__(
        self, graph: bytes, module: GraphModule, *, keep_zeros: bool, share_values: bool
    ) -> None:
        """Read zeros and equal values off `graph`; `module` holds its weights, maybe rescaled."""
        self._tied: list[_Tied] = []
        if not keep_zeros and not share_values:
            return
        for tensor in onnx.load_model_from_string(graph).graph.initializer:
            weight = module.value_of(tensor.name)
            if isinstance(weight, torch.nn.Parameter) and weight.ndim > 1:
                tied = _tied(
                    weight, numpy_helper.to_array(tensor), zeros=keep_zeros, values=share_values
                )
                if tied.mask is not None or tied.clusters is not None:
                    self._tied.append(tied)

    def to(self, device: str) -> None:
        """Follow the module to a device."""
        self._tied = [tied.to(device) for tied in self._tied]

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Take out of the gradients what would break a constraint; call it before each step."""
        for tied in self._tied:
            if tied.weight.grad is not None:
                tied.project(tied.weight.grad)

    @torch.no_grad()
    def project_weights(self) -> None:
        """Restore the constraints exactly; call it after each change of weights."""
        for tied in self._tied:
            tied.project(tied.weight)


def _tied(
    weight: torch.nn.Parameter, given: np.ndarray[tuple[int, ...], np.dtype[np.generic]], *,
    zeros: bool, values: bool,
) -> _Tied:  # fmt: skip
    mask = clusters = None
    sizes = np.ones(1)
    if zeros and (given == 0).any():
        mask = torch.from_numpy((given != 0).astype(np.float32))
    if values:
        _, numbers, counts = np.unique(given.reshape(-1), return_inverse=True, return_counts=True)
        if counts.max(initial=1) > 1:
            clusters, sizes = torch.from_numpy(numbers.astype(np.int64)), counts
    return _Tied(
        weight=weight,
        mask=mask,
        clusters=clusters,
        sizes=torch.from_numpy(sizes.astype(np.float64)),
    )
