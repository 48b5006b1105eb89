"""How near plans for Ethos-U come to what Vela then says of the files, before and after files were costed.

Networks are cut to widths drawn at random, exported untrained in int8 and compiled by Vela. Their cost as the
solver sees it is held against Vela's: by the emulator alone, by the emulator brought to Vela's figures for the
whole network, and to those for a network of half the channels besides, as jobs do. Intervals are those of the
emulator's estimate of each network, before any file.

Usage: python benchmarks/ethos_u.py --data DIR [--targets NAME,...] [--networks FILE,...] [--draws 4]
           [--json FILE] [--publish]

DIR holds `models/*`. `--publish` writes `benchmarks/results/ethos_u.json` and the table in `docs/emulators.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.publish import RESULTS, ROOT, between

from tightfit_service.adapters.emulators.ethos_u import ETHOS_U_EMULATOR
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.formats.any_import import AnyImporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_import import TfliteImporter
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.application.costs.correction import Compiled, corrected
from tightfit_service.application.costs.costing import (
    CostModel,
    ProblemBuilder,
    interval_of,
    levels,
)
from tightfit_service.application.costs.files import within_ram
from tightfit_service.application.course.narrow_file import narrow_widths
from tightfit_service.application.ports import Emulator, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.budget import Budget, Objective, Quantity
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.quantities import Interval
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.structured_pruning import StructuredPruningPass
from tightfit_service.search.problem import CompressionProblem

TARGETS = ("cortex-m55-ethos-u55-128", "cortex-m55-ethos-u55-256", "cortex-m85-ethos-u85-256")
NETWORKS = ("mlperf_resnet8_cifar10_fp32.onnx", "mlperf_dscnn_kws_fp32.tflite")
PLANS = ("emulator alone", "and the whole by Vela", "and a narrow one by Vela")
INSPECTOR = OnnxGraphInspector()
SEED = 0
CALIBRATION_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity of one network.

    Attributes:
        channels: Share of the prunable channels that stay.
        said: Vela's figure.
        planned: Figures as the solver sees them, by plan.
        low: Of the emulator's interval.
        high: Of the emulator's interval.
    """

    network: str
    target: str
    channels: float
    quantity: str
    said: float
    planned: Mapping[str, float]
    low: float
    high: float


class Network:
    """A network that is cut, written and costed; each file is written once."""

    def __init__(self, path: Path) -> None:
        importer = AnyImporter(
            importers={ModelFormat.ONNX: OnnxImporter(), ModelFormat.TFLITE: TfliteImporter()}
        )
        model = importer.import_model(path.read_bytes())
        self.name = path.stem
        self.graph = model.graph
        self._pruning = StructuredPruningPass()
        self.space = self._pruning.space(self.graph)
        shape = [abs(size) for size in model.inputs[0].shape[1:]]
        drawn = np.random.default_rng(SEED).normal(size=(CALIBRATION_SAMPLES, *shape))
        self._calibration = Samples(stored=drawn.astype(np.float32), labels=None)
        self._files: dict[tuple[tuple[str, int], ...], tuple[bytes, bytes]] = {}

    def file(self, kept: Mapping[str, int]) -> tuple[bytes, bytes]:
        """Return the cut graph and its TFLite file."""
        key = tuple(sorted(kept.items()))
        if key not in self._files:
            keep = {group: tuple(range(count)) for group, count in kept.items()}
            graph = self._pruning.apply(self.graph, keep) if keep else self.graph
            exported = TfliteExporter().export(
                graph,
                calibration=self._calibration,
                settings=QuantizationSettings(),
                metadata={},
            )
            self._files[key] = graph, exported.data
        return self._files[key]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A network on a target, with the emulators of the plans."""

    network: Network
    target: HardwareSpec
    emulators: Mapping[str, Emulator]

    @classmethod
    def of(cls, network: Network, target: HardwareSpec) -> Site:
        """Return the emulators as jobs would have them."""
        site = cls(network=network, target=target, emulators={})
        whole = site.compiled({})
        half = narrow_widths(network.space, target.channel_multiple)
        narrow = site.compiled({group: len(units) for group, units in half.items()})
        emulators = (
            ETHOS_U_EMULATOR,
            corrected(ETHOS_U_EMULATOR, target, whole),
            corrected(ETHOS_U_EMULATOR, target, whole, narrow),
        )
        return replace(site, emulators=dict(zip(PLANS, emulators, strict=True)))

    def compiled(self, kept: Mapping[str, int]) -> Compiled:
        """Return a cut network and Vela's cost of it."""
        graph, data = self.network.file(kept)
        profile = INSPECTOR.profile(graph).at_precision(weight_bits=8, activation_bits=8)
        guess = ETHOS_U_EMULATOR.estimate(profile, self.target)
        return Compiled(network=profile, cost=VelaCompiler().refine(data, self.target, guess))

    def problems(self) -> Mapping[str, CompressionProblem]:
        """Return what the solver works with, by plan."""
        return {plan: self._problem(emulator) for plan, emulator in self.emulators.items()}

    def _problem(self, emulator: Emulator) -> CompressionProblem:
        builder = ProblemBuilder(
            costs=CostModel(emulator=emulator, target=self.target, telemetry=PrometheusTelemetry()),
            profile=INSPECTOR.profile(self.network.graph),
            space=self.network.space,
            number_format=NumberFormat.INT8,
        )
        return builder.build(
            losses={group: [0.0] * len(steps) for group, steps in builder.group_levels().items()},
            budget=Budget(constraints=()),
            objective=Objective(),
            max_loss=None,
            margins={},
        )


def rows_of(network: Network, target: HardwareSpec, draws: int) -> Iterator[Row]:
    """Yield how plans of randomly cut networks compare with Vela.

    RAM is looked at twice: what Vela uses for speed, of which only estimates are made, and the least that
    it can do with, which plans are about where RAM is short.
    """
    fast, small = Site.of(network, target), Site.of(network, within_ram(target, 1))
    problems, least = fast.problems(), small.problems()
    rng = np.random.default_rng(SEED)
    full = {group.group_id: group.unit_count for group in network.space.groups}
    for _ in range(draws):
        kept = {
            group: int(rng.choice(levels(count, target.channel_multiple)))
            for group, count in full.items()
        }
        said, said_small = fast.compiled(kept), small.compiled(kept)
        own = ETHOS_U_EMULATOR.estimate(said.network, target)
        own_small = ETHOS_U_EMULATOR.estimate(said.network, small.target)
        share = sum(kept.values()) / sum(full.values())

        def row(
            what: str,
            said: Interval,
            estimated: Interval,
            planned: Mapping[str, float],
            share: float = share,
        ) -> Row:
            return Row(
                network=network.name,
                target=target.name,
                channels=share,
                quantity=what,
                said=said.value,
                planned=planned,
                low=estimated.low,
                high=estimated.high,
            )

        for quantity in (Quantity.LATENCY, Quantity.SIZE):
            planned = {plan: made.costs(kept)[quantity] for plan, made in problems.items()}
            yield row(
                str(quantity), interval_of(said.cost, quantity), interval_of(own, quantity), planned
            )
        estimated = {
            plan: emulator.estimate(said.network, target).peak_ram_bytes.value
            for plan, emulator in fast.emulators.items()
        }
        yield row("RAM for speed", said.cost.peak_ram_bytes, own.peak_ram_bytes, estimated)
        planned = {plan: made.costs(kept)[Quantity.RAM] for plan, made in least.items()}
        yield row("least RAM", said_small.cost.peak_ram_bytes, own_small.peak_ram_bytes, planned)


def table(rows: Sequence[Row]) -> str:
    """Return the errors of plans by target and quantity, in Markdown."""
    lines = [
        "| target | quantity | networks | in the emulator's interval | "
        + " | ".join(f"{plan}: median error, worst" for plan in PLANS)
        + " |",
        "|" + "---|" * (4 + len(PLANS)),
    ]
    for target in dict.fromkeys(row.target for row in rows):
        for quantity in dict.fromkeys(row.quantity for row in rows):
            chosen = [r for r in rows if (r.target, r.quantity) == (target, quantity)]
            inside = sum(row.low <= row.said <= row.high for row in chosen)
            cells = []
            for plan in PLANS:
                errors = [row.planned[plan] / row.said - 1 for row in chosen]
                median = statistics.median(map(abs, errors))
                cells.append(f"{median:.0%}, {max(errors, key=abs):+.0%}")
            lines.append(
                f"| `{target}` | {quantity} | {len(chosen)} | {inside / len(chosen):.0%} | "
                f"{' | '.join(cells)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and publish where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--publish", action="store_true")
    asked = parser.parse_args()
    rows: list[Row] = []
    for name in asked.networks.split(","):
        network = Network(asked.data / "models" / name)
        for target in asked.targets.split(","):
            rows += rows_of(network, YamlTargetCatalogue().get(target), asked.draws)
            print(table([row for row in rows if row.network == network.name]), flush=True)
    result = {"vela": VelaCompiler().version, "rows": [asdict(row) for row in rows]}
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if asked.publish:
        stored = RESULTS / "ethos_u.json"
        stored.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        page = ROOT / "docs" / "emulators.md"
        text = between(page.read_text(encoding="utf-8"), "ethos-u", table(rows))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
