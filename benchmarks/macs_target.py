"""Accuracy at a share of the multiply-accumulates, after a limited training: the search without a device.

The solver gets multiply-accumulates as the cost to stay below; importance, probes, ways to compute layers and
training are those of a job. Evaluated is the exported float32 ONNX file on the test images, which nothing is
chosen by. With several techniques each is tried, and the one that is best on the selection set after a short
training is trained long, as a job does.

Usage: python benchmarks/macs_target.py --data DIR [--aims resnet8=0.57,resnet20=0.50] [--epochs 12]
           [--techniques both,structured_pruning] [--json FILE]

DIR holds `cifar10/cifar10_train20k_test4k.npz` and `models/*.onnx`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.local_units import LocalUnits
from benchmarks.main_job import MANIFEST, NETWORKS

from tightfit.dataset_archive import packed
from tightfit.dataset_file import read_dataset_file
from tightfit_service import bootstrap
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.application.costs.costing import CostModel, ProblemBuilder
from tightfit_service.application.course.proposals import Aim, Proposal, Proposer
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import QuantizationSettings, RecoverySettings
from tightfit_service.application.units.kinds import Nothing
from tightfit_service.application.work.baseline import BASELINE, BaselineTask
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.model_import import IMPORT_MODEL
from tightfit_service.application.work.recipe import TrialOutcome
from tightfit_service.application.work.sensitivity import SENSITIVITY, SensitivityTask
from tightfit_service.application.work.trial import TRIAL, TrialTask
from tightfit_service.domain.budget import Budget, Constraint, Objective, Quantity
from tightfit_service.domain.cost import CostEstimate, MemoryPoint, OperatorCost
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat
from tightfit_service.domain.network import (
    DEFAULT_IMPORTANCE,
    NetworkProfile,
    Operator,
    PruningSpace,
)
from tightfit_service.domain.quantities import Interval
from tightfit_service.domain.recipe import PassStep, Recipe

TARGET = "nucleo-h7a3zi-q"
"""Only its channel multiple is looked at."""
SCREENING_EPOCHS = 1.0
TECHNIQUES = {
    "structured_pruning": (True, ()),
    "low_rank": (False, ("low_rank",)),
    "both": (True, ("low_rank",)),
}
"""Whether channels may go, and which other techniques may be used."""


class MacsEmulator:
    """Counts multiply-accumulates as if each took a nanosecond."""

    name = "macs"

    def supports(self, target: HardwareSpec) -> bool:
        """Whether it knows the target: it needs to know nothing."""
        del target
        return True

    def estimate(
        self, network: NetworkProfile, target: HardwareSpec, *, file_bytes: int | None = None
    ) -> CostEstimate:
        """Return the sums over all operators."""
        layers = tuple(self.operator_cost(operator, target) for operator in network.operators)
        return CostEstimate(
            latency_ms=Interval.exact(sum(layer.latency_ms for layer in layers)),
            energy_mj=Interval.exact(0.0),
            peak_ram_bytes=Interval.exact(0.0),
            flash_bytes=Interval.exact(float(file_bytes or 0)),
            macs=network.macs,
            layers=layers,
            peak_node="",
            provenance="multiply-accumulates",
            confidence=1.0,
        )

    def operator_cost(self, operator: Operator, target: HardwareSpec) -> OperatorCost:
        """Return the multiply-accumulates of an operator as its latency."""
        del target
        return OperatorCost(
            node=operator.node,
            op_type=operator.op_type,
            macs=operator.macs,
            latency_ms=operator.macs * 1e-6,
            energy_mj=0.0,
            weight_bytes=0,
        )

    def memory_points(
        self, network: NetworkProfile, target: HardwareSpec
    ) -> tuple[MemoryPoint, ...]:
        """Return nothing: memory is not limited here."""
        del network, target
        return ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network compressed by one choice of techniques; accuracies are fractions."""

    network: str
    techniques: str
    macs_share: float
    epochs: float
    before: float
    screened: float
    selected: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One network with its data, ready for units of work."""

    network: str
    units: LocalUnits
    facts: ModelFacts
    inputs: dict[str, Path]
    folder: Path

    def proposal(self, techniques: str, share: float) -> Proposal:
        """Return what the solver takes for the least loss within a share of the work."""
        may_prune, passes = TECHNIQUES[techniques]
        space = self.facts.space if may_prune else PruningSpace(groups=())
        target = bootstrap.catalogue().get(TARGET)
        costs = CostModel(emulator=MacsEmulator(), target=target, telemetry=PrometheusTelemetry())
        found, _ = self.units.run(
            SENSITIVITY,
            SensitivityTask(
                model=self.facts,
                target=target,
                seed=0,
                space=space,
                importance=DEFAULT_IMPORTANCE,
                shares=(0.25, 0.5),
                techniques=passes,
                number_format=None,
            ),
            self.inputs,
            self.folder,
        )
        limit = share * self.facts.profile.macs * 1e-6
        proposer = Proposer(
            problems=ProblemBuilder(
                costs=costs,
                profile=self.facts.profile,
                space=space,
                number_format=NumberFormat.FLOAT32,
            ),
            sensitivity=found,
            aim=Aim(
                budget=Budget(constraints=(Constraint(quantity=Quantity.LATENCY, limit=limit),)),
                objective=Objective(),
                margins={},
            ),
            seed=0,
        )
        return proposer.first_round()[0]

    def trial(self, proposal: Proposal, epochs: float, *, evaluate: bool) -> TrialOutcome:
        """Apply a proposal and train for so many epochs."""
        nodes = {choice.node: dict(choice.parameters) for choice in proposal.alternatives}
        keep = {group: list(units) for group, units in proposal.keep.items()}
        steps = [
            *(
                [PassStep(pass_name="structured_pruning", parameters={"keep": keep})]
                if keep
                else []
            ),
            *([PassStep(pass_name="low_rank", parameters={"nodes": nodes})] if nodes else []),
            PassStep(pass_name="recovery", parameters=to_plain(RecoverySettings(epochs=epochs))),
            PassStep(
                pass_name="quantization",
                parameters=to_plain(QuantizationSettings(number_format=NumberFormat.FLOAT32)),
            ),
        ]
        recipe = Recipe(
            source_digest="0" * 64,
            seed=0,
            target=TARGET,
            output_format="onnx",
            steps=tuple(steps),
        )
        task = TrialTask(
            model=self.facts,
            recipe=recipe,
            target=bootstrap.catalogue().get(TARGET),
            evaluate=evaluate,
            teacher_key=self.network,
        )
        outcome, _ = self.units.run(TRIAL, task, self.inputs, self.folder)
        return outcome


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--aims", default="resnet8=0.57,resnet20=0.50")
    parser.add_argument("--epochs", type=float, default=12.0)
    parser.add_argument("--techniques", default="both,structured_pruning")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for aim in arguments.aims.split(","):
        network, _, share = aim.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            rows += run_network(
                network,
                float(share),
                arguments.data,
                Path(folder),
                arguments.techniques.split(","),
                arguments.epochs,
            )
        print(json.dumps([asdict(row) for row in rows], indent=1), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def run_network(
    network: str, share: float, data: Path, folder: Path, names: list[str], epochs: float
) -> list[Row]:
    """Return the row of the best choice of techniques on the selection set."""
    began = time.monotonic()
    file, preprocess = NETWORKS[network]
    shutil.copy(data / "cifar10/cifar10_train20k_test4k.npz", folder)
    manifest = folder / "dataset.yaml"
    manifest.write_text(MANIFEST.format(preprocess=preprocess))
    units = LocalUnits(folder / "data")
    model, files = units.run(IMPORT_MODEL, Nothing(), {"model": data / file}, folder)
    with packed(read_dataset_file(manifest)) as archive:
        inputs = {"model": data / file, "graph": files["graph"], "dataset": archive.path}
        bench = Bench(
            network=network, units=units, facts=model, inputs=inputs, folder=folder / "out"
        )
        before, _ = units.run(BASELINE, BaselineTask(model=model), inputs, folder)
        screened: dict[str, tuple[float, Proposal]] = {}
        for name in names:
            proposal = bench.proposal(name, share)
            seen = bench.trial(proposal, SCREENING_EPOCHS, evaluate=False).selection_accuracy
            assert seen is not None
            screened[name] = (seen.value, proposal)
            print(network, name, "after one epoch", seen.value, flush=True)
        chosen = max(screened, key=lambda name: screened[name][0])
        outcome = bench.trial(screened[chosen][1], epochs, evaluate=True)
    assert before.accuracy is not None
    assert outcome.accuracy is not None
    assert outcome.selection_accuracy is not None
    return [
        Row(
            network=network,
            techniques=chosen,
            macs_share=outcome.profile.macs / model.profile.macs,
            epochs=sum(outcome.recoveries),
            before=before.accuracy.value,
            screened=screened[chosen][0],
            selected=outcome.selection_accuracy.value,
            accuracy=outcome.accuracy.value,
            accuracy_low=outcome.accuracy.low,
            accuracy_high=outcome.accuracy.high,
            seconds=time.monotonic() - began,
        )
    ]


if __name__ == "__main__":
    main()
