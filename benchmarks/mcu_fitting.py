"""Fits the microcontroller latency model: maximum a posteriori log factors with Gaussian priors and a robust loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from benchmarks.layer_tables import with_head
from benchmarks.measured_rows import MeasuredRow
from benchmarks.zero_channels import VISUAL_WAKE_WORDS, drops_zero_channels, without_zero_channels

from tightfit_service.adapters.emulators.mcu_latency import (
    LogPrices,
    Setup,
    board_of,
    known_levels_of,
    nearest_known,
    network_work,
    parameters_of,
    prior_kind,
    runtime_path,
)
from tightfit_service.domain.layer_table import LayerTable

FloatArray = npt.NDArray[np.float64]

PRIOR_MEANS: Mapping[str, float] = {
    # Cycles per unit on a Cortex-M7 with a good runtime. A dual-issue core retires one SMLAD (two
    # products) per cycle at best; loads and widening bring 1x1 convolutions to about 0.8 cycles per
    # product. L. Lai, N. Suda and V. Chandra ("CMSIS-NN: Efficient Neural Network Kernels for Arm Cortex-M
    # CPUs", arXiv:1801.06601) measured 42.8 and 22.6 ms at 216 MHz for two 5x5 convolutions with 32 input
    # channels, 6.6 and 3.3 M products: 1.41 and 1.49; less the gathering of patches, that is 1.25.
    "base:conv_mac": math.log(1.25),
    "base:pointwise_mac": math.log(0.8),
    "base:patch_element": math.log(2.0),
    # Requantisation: a 64-bit multiply, rounding shift, offset, two clamps and a store.
    "base:conv_output": math.log(8.0),
    "base:depthwise_mac": math.log(2.5),
    "base:depthwise_output": math.log(10.0),
    # A dense layer loads both operands for every product, where convolutions share a weight
    # between two pixels.
    "base:dense_mac": math.log(0.9),
    "base:weight_byte": math.log(0.4),
    "base:elementwise": math.log(12.0),
    "base:conv_row": math.log(6.0),
    "base:pool": math.log(4.0),
    "base:reduce": math.log(6.0),
    "base:copy": math.log(1.5),
    "base:nonlinear": math.log(40.0),
    "base:resize": math.log(15.0),
    "base:layer": math.log(3_000.0),
    # Single issue (M4, M33), no DSP instructions and a slower multiplier path (M0+), and the vector
    # units of M55 and M85: their per-core figures are the typical values published with the
    # MLPerf Tiny results (M85: 0.14 cycles per product in conv, 1.5 in depthwise, 8000 per layer).
    "core:cortex-m33": 0.35,
    "core:cortex-m4": 0.5,
    "core:cortex-m0+": 1.9,
    "core:cortex-m55": -0.4,
    "core:cortex-m55:gemm": -0.9,
    "core:cortex-m55:dense": -0.9,
    "core:cortex-m55:depthwise": -0.6,
    "core:cortex-m85": -0.5,
    "core:cortex-m85:gemm": -1.3,
    "core:cortex-m85:dense": -1.2,
    "core:cortex-m85:depthwise": -0.9,
    "runtime:tflm/reference": 2.0,
    # The mbed build of the v0.5 reference takes 2.5 to 6.8 times the cycles of later submissions.
    "runtime:tflm/cmsis-nn/2.3.1": 0.4,
    "float:gemm": 0.9,
    "float:depthwise": 0.5,
    "float:dense": 1.1,
    # Software floating point costs tens of cycles per operation.
    "float:cortex-m0+:*": 2.0,
}

PRIOR_SD: Mapping[str, float] = {
    "base": 0.4,
    "core": 0.075,
    "core:*": 0.19,
    "runtime": 0.4,
    "runtime:*": 0.19,
    "runtime:depthwise": 0.25,
    "release": 0.2,
    "release:*": 0.19,
    "release:depthwise": 0.23,
    "mode": 0.16,
    "mode:depthwise": 0.125,
    "mode:*": 0.125,
    "board": 0.09,
    "board:*": 0.08,
    "setup": 0.025,
    "setup:*": 0.04,
    "net": 0.15,
    "float": 0.4,
    "float:*": 0.19,
}
"""Standard deviations of the log factors, chosen on leave-one-out scores."""
NOISE_SD = 0.06
HUBER = 2.0
RANK = 120
"""Directions of parameter space kept for the uncertainty; leaving out weak ones widens intervals."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One measured row with the work of its network."""

    row: MeasuredRow
    work: Mapping[tuple[str, bool], float]
    cycles: float
    path: tuple[str, ...]
    net: str = ""
    """Name of a network whose layers are not known: its work is that of a similar network, scaled."""


SIMILAR_NETWORK = "mobilenet_v2_0.35_224"
"""The networks of the TinyEngine comparison are chains of inverted residuals, like this one."""


def comparison_samples(
    rows: Sequence[MeasuredRow], tables: Mapping[str, LayerTable]
) -> list[Sample]:
    """Return rows that compare runtimes on the same networks, whose layers are not published.

    They tell runtimes apart, not networks: each network gets a free scale of its own. They are fitted
    to and never scored.
    """
    similar = tables[SIMILAR_NETWORK].profile
    work = network_work(similar.operators, channel_multiple_of("cortex-m7"))
    return [
        Sample(
            row=row,
            work={key: amount * row.macs / similar.macs for key, amount in work.items()},
            cycles=row.latency_ms * row.clock_mhz * 1e3,
            path=runtime_path(row.runtime, row.runtime_version),
            net=row.model,
        )
        for row in rows
        if row.group == "tinyengine" and row.macs and row.latency_ms
    ]


def channel_multiple_of(core: str) -> int:
    """Return the rounding of widths that the emulator applies on a core class."""
    return 1 if core == "cortex-m0+" else 4


def samples_of(rows: Sequence[MeasuredRow], tables: Mapping[str, LayerTable]) -> list[Sample]:
    """Return the rows that run on the processor alone and whose layers are known.

    Streaming wake word is left out: its latency holds the feature extraction besides the network.
    """
    samples = []
    for row in rows:
        table = table_for(row, tables)
        if table is None or row.latency_ms is None or row.accelerator or row.family == "sww":
            continue
        profile = table.profile
        if row.is_float:
            profile = profile.at_precision(weight_bits=32, activation_bits=32)
        samples.append(
            Sample(
                row=row,
                work=network_work(profile.operators, channel_multiple_of(row.core)),
                cycles=row.latency_ms * row.clock_mhz * 1e3,
                path=runtime_path(row.runtime, row.runtime_version),
            )
        )
    return samples


def table_for(row: MeasuredRow, tables: Mapping[str, LayerTable]) -> LayerTable | None:
    """Return the layer table of what runs: the row's own, or that of the same net with another head."""
    if row.model in tables:
        drops = drops_zero_channels(runtime_path(row.runtime, row.runtime_version))
        if drops and row.model == VISUAL_WAKE_WORDS and not row.is_float:
            return without_zero_channels(tables[row.model])
        return tables[row.model]
    table = tables.get(row.model.split(" ", maxsplit=1)[0])
    if table is None or not row.macs or abs(table.profile.macs / row.macs - 1) > 0.02:
        return None
    return with_head(table, row.params) if row.params else table


def setup_for(sample: Sample, known_levels: frozenset[str]) -> Setup:
    """Return the setup of a sample as seen by a model that knows these runtimes."""
    path = nearest_known(sample.path, known_levels) if known_levels else sample.path
    return Setup(core=sample.row.core, board=board_of(sample.row.board), runtime=path)


def fit(
    samples: Sequence[Sample],
    *,
    prior_sd: Mapping[str, float] = PRIOR_SD,
    noise_sd: float = NOISE_SD,
    iterations: int = 60,
) -> LogPrices:
    """Return the posterior mode of the log factors and what was learned about each.

    Gauss-Newton with Huber weights, in the space of samples: there are more factors than rows.
    """
    system = _System.of(samples)
    target = np.log([s.cycles for s in samples])
    weight = np.array([s.row.weight for s in samples])
    prior = np.array([PRIOR_MEANS.get(n, 0.0) for n in system.order])
    spread = np.array([prior_sd[prior_kind(n)] for n in system.order])
    theta = prior.copy()
    for _ in range(iterations):
        logs, jacobian = system.linearise(theta)
        residual = target - logs
        huber = np.minimum(1.0, HUBER * noise_sd / np.maximum(np.abs(residual), 1e-9))
        whitened = jacobian * spread
        noise = noise_sd**2 / (weight * huber)
        goal = residual + jacobian @ (theta - prior)
        step = (
            prior
            + spread * (whitened.T @ np.linalg.solve(whitened @ whitened.T + np.diag(noise), goal))
            - theta
        )
        step *= min(1.0, 0.7 / max(float(np.abs(step).max()), 1e-9))
        theta = theta + step
        if np.abs(step).max() < 1e-4:
            break
    _, values, directions = np.linalg.svd(whitened / np.sqrt(noise)[:, None], full_matrices=False)
    explained = directions[:RANK].T * np.sqrt(values[:RANK] ** 2 / (1 + values[:RANK] ** 2))
    return LogPrices(
        means=dict(zip(system.order, theta.tolist(), strict=True)),
        prior_sd=prior_sd,
        learned=dict(zip(system.order, explained, strict=True)),
        noise_sd=noise_sd,
    )


@dataclass(frozen=True, kw_only=True)
class _System:
    """The samples as sums of amounts times exponentials of sums of parameters."""

    order: tuple[str, ...]
    incidence: tuple[FloatArray, ...]
    amounts: tuple[FloatArray, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> _System:
        names_of = [
            [
                (
                    *parameters_of(
                        Setup(core=s.row.core, board=board_of(s.row.board), runtime=s.path),
                        term,
                        is_float=is_float,
                    ),
                    *((f"net:{s.net}",) if s.net else ()),
                )
                for term, is_float in s.work
            ]
            for s in samples
        ]
        order = sorted({name for sample in names_of for names in sample for name in names})
        index = {name: i for i, name in enumerate(order)}
        incidence = []
        for sample_names in names_of:
            matrix = np.zeros((len(sample_names), len(order)))
            for i, names in enumerate(sample_names):
                for name in names:
                    matrix[i, index[name]] += 1.0
            incidence.append(matrix)
        return cls(
            order=tuple(order),
            incidence=tuple(incidence),
            amounts=tuple(np.array(list(s.work.values())) for s in samples),
        )

    def linearise(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return log cycles of every sample and their derivatives."""
        logs = np.empty(len(self.amounts))
        jacobian = np.empty((len(self.amounts), len(self.order)))
        for i, (matrix, amount) in enumerate(zip(self.incidence, self.amounts, strict=True)):
            costs = amount * np.exp(matrix @ theta)
            total = costs.sum()
            logs[i] = math.log(total)
            jacobian[i] = (costs / total) @ matrix
        return logs, jacobian


def with_priors(prices: LogPrices) -> LogPrices:
    """Return the prices with the prior means of parameters that no row has touched."""
    return replace(prices, means={**PRIOR_MEANS, **prices.means})


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A sample predicted by a model that has not seen its group."""

    sample: Sample
    cycles: float
    log_sd: float

    @property
    def log_error(self) -> float:
        """Log of predicted over measured."""
        return math.log(self.cycles / self.sample.cycles)


def predict(prices: LogPrices, sample: Sample) -> Prediction:
    """Return the sample's prediction."""
    setup = setup_for(sample, known_levels_of(prices.means))
    by_float = {f: prices.prices(setup, is_float=f) for f in {f for _, f in sample.work}}
    cycles = {(t, f): by_float[f][t] * amount for (t, f), amount in sample.work.items()}
    return Prediction(
        sample=sample, cycles=sum(cycles.values()), log_sd=prices.log_sd(setup, cycles)
    )


def held_out(
    samples: Sequence[Sample],
    group: Mapping[int, str],
    *,
    extra: Sequence[Sample] = (),
    prior_sd: Mapping[str, float] = PRIOR_SD,
    noise_sd: float = NOISE_SD,
) -> list[Prediction]:
    """Return every sample's prediction by the model fitted without its group.

    `extra` samples are fitted to throughout, but for those of the device that is left out.
    """
    predictions: list[Prediction] = []
    for key in sorted(set(group.values())):
        inside = [s for i, s in enumerate(samples) if group[i] != key]
        inside += [s for s in extra if s.row.device != key]
        outside = [s for i, s in enumerate(samples) if group[i] == key]
        prices = with_priors(fit(inside, prior_sd=prior_sd, noise_sd=noise_sd))
        predictions += [predict(prices, sample) for sample in outside]
    return predictions
