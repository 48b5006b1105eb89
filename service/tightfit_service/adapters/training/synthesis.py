"""Inputs made up for a network from the network alone, where there is no data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from tightfit_service.adapters.training.losses import by_class
from tightfit_service.adapters.training.module import build_module
from tightfit_service.adapters.training.node_view import NodeView, Value
from tightfit_service.adapters.training.targets import DistilledTensor, find_targets
from tightfit_service.application.samples import FloatArray
from tightfit_service.graph.fusion import PRODUCTS
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.structure import sorted_model_nodes

_BATCH = 64
_RATE = 0.1
"""Of Adam, in units of the noise that inputs start from."""

_SMOOTHNESS = 0.05
_STATISTICS = 1.0
_SPARSITY = 0.1
"""Concentration of the Dirichlet distribution that wanted answers come from: most have one class
that is nearly sure and few that are likely beside it."""

_SCALES = tuple(2.0**power for power in range(-4, 9))
"""Candidate standard deviations of inputs: from normalised features to bytes."""
_CENTRES = (0.0, 1.0, 2.0)
"""Candidate means, in standard deviations: signed values, and images, which are positive."""
_SMALLEST = 1e-6


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """Mean and standard deviation of a network's inputs, all values taken together."""

    mean: float
    deviation: float


def find_range(network: Network, samples: torch.Tensor) -> InputRange:
    """Return in which range a network expects its inputs, judged by what noise in it does inside.

    A network with BatchNorms says by their statistics what they saw in training; the candidate that
    comes closest is taken. Where they are folded away, the first layer tells: trained networks have
    pre-activations of about unit size there, neither all positive nor all negative, so weights of a
    network for bytes are hundreds of times smaller than those of one for normalised inputs. That
    finds the order of magnitude, not the exact range.

    Args:
        network: What inputs are wanted for.
        samples: Noise with mean 0 and standard deviation 1, shape (n, ...).
    """
    candidates = [
        InputRange(mean=centre * scale, deviation=scale) for scale in _SCALES for centre in _CENTRES
    ]
    with torch.no_grad():
        fits = [network.misfit(samples * c.deviation + c.mean) for c in candidates]
    usable = np.nan_to_num(fits, nan=np.inf, posinf=np.inf)
    if np.isinf(usable.min()):
        return InputRange(mean=0.0, deviation=1.0)
    return candidates[int(np.argmin(usable))]


class Network:
    """A network, its module and where its first layer's outputs are."""

    def __init__(self, graph: bytes) -> None:
        """Build the module.

        Raises:
            UnsupportedError: An operator cannot be executed.
        """
        self.module = build_module(graph)
        self.targets = find_targets(graph)
        model = load_model(graph)
        self._outputs = [output.name for output in model.graph.output]
        self._first = next(
            (node for node in sorted_model_nodes(model) if node.op_type in PRODUCTS), None
        )

    def run(self, inputs: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the distilled tensors, and the distances to each BatchNorm's statistics."""
        distances: list[torch.Tensor] = []

        def look(node: NodeView, args: list[Value | None]) -> None:
            if node.op_type == "BatchNormalization":
                distance = _distance(args[0], args[3], args[4])
                if distance is not None:
                    distances.append(distance)

        names = [target.name for target in self.targets]
        return self.module.eval().run_to(names, inputs, before_node=look), distances

    def misfit(self, inputs: torch.Tensor) -> float:
        """Return how far inputs are from what the network expects; infinite where nothing says so."""
        _, distances = self.run(inputs)
        if distances:
            return float(torch.stack(distances).mean())
        if self._first is None:
            return float("inf")
        value = self.module.run_to([self._first.output[0]], inputs)[0]
        axis = 1 if self._first.op_type.startswith("Conv") else -1
        rows = value.movedim(axis, 0).flatten(1).double()
        spread = rows.std(dim=1).clamp(min=_SMALLEST)
        shift = (rows.mean(dim=1) / spread).square().median()
        return float(spread.log().mean().square() + shift)


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Optimises noise into inputs that a network is sure about, each about something else.

    After DeepInversion (Yin et al., CVPR 2020): the answers come close to wanted ones, images are
    smooth (total variation), and the statistics in front of each BatchNorm are those that it knows
    from training, as far as the graph has BatchNorms left. The wanted answers are drawn from a
    Dirichlet distribution, its highest class going round (zero-shot knowledge distillation; Nayak
    et al., ICML 2019), so that classes are equally frequent and seldom alone. Outputs that are no
    scores are made to differ between samples.

    Attributes:
        shape: Of one input.
        steps: Of Adam, for each batch.
    """

    network: Network
    shape: tuple[int, ...]
    steps: int

    def inputs(self, count: int, *, seed: int) -> FloatArray:
        """Return that many inputs, shape (count, ...)."""
        random = np.random.default_rng(seed)
        span = find_range(self.network, torch.from_numpy(noise(_BATCH, self.shape, random)))
        batches = [
            self._batch(start, min(_BATCH, count - start), span, random)
            for start in range(0, count, _BATCH)
        ]
        return np.concatenate(batches)

    def _batch(
        self, start: int, count: int, span: InputRange, random: np.random.Generator
    ) -> FloatArray:
        values = torch.from_numpy(noise(count, self.shape, random)).requires_grad_()
        optimiser = torch.optim.Adam([values], lr=_RATE)
        wanted: list[torch.Tensor] = []
        for step in range(self.steps):
            outputs, distances = self.network.run(values * span.deviation + span.mean)
            if step == 0:
                wanted = [
                    _wanted(output, target, start, random)
                    for output, target in zip(outputs, self.network.targets, strict=True)
                ]
            loss = self._loss(values, outputs, wanted, distances)
            if not loss.requires_grad or not bool(torch.isfinite(loss)):
                break  # no gradient reaches the input, or none that means anything
            gradient = torch.autograd.grad(loss, values)[0]
            if not bool(torch.isfinite(gradient).all()):
                break
            values.grad = gradient
            optimiser.step()
            with torch.no_grad():
                values.clamp_(-4.0, 4.0)
        return (values.detach() * span.deviation + span.mean).numpy().astype(np.float32)

    def _loss(
        self,
        values: torch.Tensor,
        outputs: list[torch.Tensor],
        wanted: list[torch.Tensor],
        distances: list[torch.Tensor],
    ) -> torch.Tensor:
        terms = [_SMOOTHNESS * _total_variation(values, spatial_axes(self.shape))]
        if distances:
            terms.append(_STATISTICS * torch.stack(distances).mean())
        for output, target, answer in zip(outputs, self.network.targets, wanted, strict=True):
            if target.axis is not None:
                # one answer for the whole input, also where each pixel has scores
                scores = by_class(output, target.axis).mean(dim=2)
                terms.append(functional.cross_entropy(scores, answer) / len(outputs))
            elif len(values) > 1:
                spread = output.float().flatten(1).var(dim=0).mean()
                # the logarithm rises ever more slowly: differing is enough
                terms.append(-0.1 * torch.log(spread + _SMALLEST) / len(outputs))
        return torch.stack(terms).sum()


def _distance(
    value: Value | None, mean: Value | None, variance: Value | None
) -> torch.Tensor | None:
    """Return how far a batch is from a BatchNorm's statistics, in units of the known variance.

    The mean over channels of the squared differences of mean and deviation.
    """
    if not isinstance(value, torch.Tensor):
        return None
    if not isinstance(mean, torch.Tensor) or not isinstance(variance, torch.Tensor):
        return None
    rows = value.transpose(0, 1).flatten(1)
    known = variance.clamp(min=_SMALLEST)
    spread = torch.sqrt(rows.var(dim=1, correction=0) + _SMALLEST)
    apart = (rows.mean(dim=1) - mean).square() / known
    wider = (spread / torch.sqrt(known) - 1).square()
    return (apart + wider).mean()


def noise(count: int, shape: tuple[int, ...], random: np.random.Generator) -> FloatArray:
    """Return noise with mean 0 and deviation 1; over spatial axes as smooth as photographs.

    The amplitude of their frequencies falls as 1/f (Field, 1987). Other inputs get white noise.
    """
    values = random.normal(size=(count, *shape))
    axes = spatial_axes(shape)
    if axes:
        squares = sum(
            np.square(np.fft.fftfreq(values.shape[axis])).reshape(
                [-1 if place == axis else 1 for place in range(values.ndim)]
            )
            for axis in axes
        )
        lowest = 1.0 / max(values.shape[axis] for axis in axes)
        falling = 1.0 / np.maximum(np.sqrt(squares), lowest)
        values = np.fft.ifftn(np.fft.fftn(values, axes=axes) * falling, axes=axes).real
    values = (values - values.mean()) / max(float(values.std()), _SMALLEST)
    return np.asarray(values, dtype=np.float32)


def spatial_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of an image in a batch of inputs, none where a sample is no image.

    Images have three axes, and channels first unless only the last one is short.
    """
    if len(shape) != 3:
        return ()
    return (1, 2) if shape[2] <= 4 < shape[0] else (2, 3)


def _wanted(
    output: torch.Tensor, target: DistilledTensor, start: int, random: np.random.Generator
) -> torch.Tensor:
    """Return the wanted distribution of each sample, shape (n, classes); empty for values."""
    if target.axis is None:
        return torch.empty(0)
    count, classes = output.shape[0], output.shape[target.axis]
    rows = random.dirichlet(np.full(classes, _SPARSITY), size=count)
    rows = -np.sort(-rows, axis=1)
    for place, row in enumerate(rows):
        first = (start + place) % classes
        others = random.permutation(np.delete(np.arange(classes), first))
        rows[place] = row[np.argsort([first, *others])]
    return torch.from_numpy(rows.astype(np.float32))


def _total_variation(values: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Return the mean absolute difference of neighbours over the axes of an image."""
    found: Iterator[torch.Tensor] = (
        values.diff(dim=axis).abs().mean() for axis in axes if values.shape[axis] > 1
    )
    return torch.stack([values.new_zeros(()), *found]).sum()
