"""Worker results made up from the widths a recipe keeps, and a network small enough to check by hand.

The network is conv a (3 -> 16), conv b (16 -> 32), dense c (32 -> 10) at 8 x 8. Accuracy falls with
the square of the share cut, and half of that comes back with an epoch of training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fakes.scripted_download import PACKED_SHARE, loss, offer, share, strength
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.ports import (
    BeginCallback,
    ProgressCallback,
    TensorSignature,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.application.recipes.attribution import ChangeLosses
from tightfit_service.application.units.kinds import unit_digest
from tightfit_service.application.work.attribution import ATTRIBUTION
from tightfit_service.application.work.baseline import BASELINE, BaselineOutcome
from tightfit_service.application.work.checks import CHECK_DATASET
from tightfit_service.application.work.download import (
    DOWNLOAD_LAYERS,
    DOWNLOAD_NOTES,
    DOWNLOAD_OPTIONS,
)
from tightfit_service.application.work.download_layers import NOT_MEASURED
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.application.work.model_import import IMPORT_MODEL
from tightfit_service.application.work.narrow_file import NARROW_FILE, NarrowFileOutcome
from tightfit_service.application.work.node_ways import MeasuredAlternative
from tightfit_service.application.work.recipe import TrialOutcome
from tightfit_service.application.work.sensitivity import (
    SENSITIVITY,
    MeasuredPoint,
    SensitivityOutcome,
)
from tightfit_service.application.work.teacher import TEACHER, TeacherOutcome
from tightfit_service.application.work.trial import TRIAL
from tightfit_service.application.work.variants import VARIANTS, MeasuredVariant, VariantsOutcome
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.network import (
    ChannelGroup,
    FrozenChannels,
    NetworkProfile,
    Operator,
    OperatorKind,
    PruningSpace,
    Width,
    WidthTerm,
)
from tightfit_service.domain.quantities import wilson_accuracy
from tightfit_service.domain.recipe import PassStep, Recipe

UNITS = {"a": 16, "b": 32}
BASELINE_ACCURACY = 0.9
QUANTIZED_ACCURACY = 0.895


def network(a: int = 16, b: int = 32) -> NetworkProfile:
    def conv(node: str, source: str, into: int, out: int) -> Operator:
        return Operator(
            node=node,
            kind=OperatorKind.CONV,
            op_type="Conv",
            inputs=(source,),
            outputs=(f"{node}_out",),
            macs=64 * 9 * into * out,
            in_channels=into,
            out_channels=out,
            in_size=(8, 8),
            out_size=(8, 8),
            kernel=(3, 3),
            stride=(1, 1),
            weight_count=9 * into * out,
            bias_count=out,
        )

    dense = Operator(
        node="c",
        kind=OperatorKind.DENSE,
        op_type="Gemm",
        inputs=("b_out",),
        outputs=("logits",),
        macs=b * 10,
        in_channels=b,
        out_channels=10,
        weight_count=b * 10,
        bias_count=10,
    )
    return NetworkProfile(
        operators=(conv("a", "input", 3, a), conv("b", "a_out", a, b), dense),
        tensors={
            "input": (1, 3, 8, 8),
            "a_out": (1, a, 8, 8),
            "b_out": (1, b, 8, 8),
            "logits": (1, 10),
        },
        inputs=("input",),
        outputs=("logits",),
    )


def pruning_space() -> PruningSpace:
    def width(group: str) -> Width:
        return Width(terms=(WidthTerm(group_id=group, multiplier=1),))

    return PruningSpace(
        groups=(
            ChannelGroup(group_id="a", unit_count=16, producers=("a",), consumers=("b",)),
            ChannelGroup(group_id="b", unit_count=32, producers=("b",), consumers=("c",)),
        ),
        input_widths={"b": width("a"), "c": width("b")},
        output_widths={"a": width("a"), "b": width("b")},
        tensor_widths={"a_out": width("a"), "b_out": width("b")},
        frozen=(FrozenChannels(node="c", channel_count=10, reason="its channels are the output"),),
    )


def facts() -> ModelFacts:
    return ModelFacts(
        inputs=(TensorSignature(name="input", shape=(-1, 3, 8, 8), dtype="float32"),),
        outputs=(TensorSignature(name="logits", shape=(-1, 10), dtype="float32"),),
        opset=17,
        node_count=3,
        parameter_count=network().weight_count,
        macs=network().macs,
        is_quantized=False,
        warnings=(),
        profile=network(),
        space=pruning_space(),
    )


class ScriptedExecutor:
    """Implements `ports.Executor` without processes; counts what it ran."""

    def __init__(self) -> None:
        self.ran: list[WorkUnit] = []
        self.running = 0
        self.most_running = 0
        """Units that ran at a time."""
        self.pause_seconds = 0.0
        """For which a unit lets others run."""
        self.fail: dict[int, TightfitError] = {}
        """Errors to raise at the n-th unit run, counted from 1."""
        self.variants: list[MeasuredVariant] = []
        """Other forms of the network that a search may turn to."""
        self.alternatives: list[MeasuredAlternative] = []
        """Other ways to compute single nodes."""
        self.models: dict[str, ModelFacts] = {}
        """Facts of model files by digest; the others are all the network above."""
        self.teacher_accuracy = 0.92
        self.growth = 1.0
        """By which packed files are larger than was predicted before training."""
        self.layers = NOT_MEASURED
        """What measuring layers one by one finds."""

    async def start(self) -> None:
        return

    async def check(self) -> None:
        """See `Executor`: there is nothing that could be away."""

    async def stop(self) -> None:
        return

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        await on_begin()
        self.ran.append(unit)
        if (error := self.fail.get(len(self.ran))) is not None:
            raise error
        on_progress(0.5, "half way")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.pause_seconds)
        finally:
            self.running -= 1
        handler = {
            IMPORT_MODEL.name: self._import,
            CHECK_DATASET.name: self._dataset,
            BASELINE.name: self._baseline,
            SENSITIVITY.name: self._sensitivity,
            VARIANTS.name: self._variants,
            ATTRIBUTION.name: self._attribution,
            TEACHER.name: self._teacher,
            TRIAL.name: self._trial,
            NARROW_FILE.name: self._narrow_file,
            DOWNLOAD_NOTES.name: self._download_notes,
            DOWNLOAD_LAYERS.name: self._download_layers,
            DOWNLOAD_OPTIONS.name: self._download_options,
        }[unit.kind]
        return handler(unit)

    def trials_run(self) -> list[str]:
        return [unit_digest(unit) for unit in self.ran if unit.kind == TRIAL.name]

    def _import(self, unit: WorkUnit) -> WorkResult:
        digest = unit.inputs["model"]
        known = self.models.get(digest)
        return WorkResult(
            payload=to_plain(known or facts()),
            outputs={"graph": "9" * 64 if known is None else digest[::-1]},
        )

    def _variants(self, unit: WorkUnit) -> WorkResult:
        wanted = [v for v in self.variants if v.variant.pass_name in unit.payload["techniques"]]
        return WorkResult(payload=to_plain(VariantsOutcome(variants=tuple(wanted))))

    def _dataset(self, unit: WorkUnit) -> WorkResult:
        return WorkResult(payload={"task": "classification"})

    def _baseline(self, unit: WorkUnit) -> WorkResult:
        accuracy = wilson_accuracy(BASELINE_ACCURACY * 1000, 1000)
        outcome = BaselineOutcome(
            accuracy=accuracy,
            selection_accuracy=accuracy,
            parity=0.0,
            file_bytes=40_000,
            train_count=5000,
            evaluation_count=1000,
        )
        return WorkResult(payload=to_plain(outcome))

    def _sensitivity(self, unit: WorkUnit) -> WorkResult:
        outcome = SensitivityOutcome(
            importance={g: tuple(1.0 + i / n for i in range(n)) for g, n in UNITS.items()},
            points=tuple(
                MeasuredPoint(group_id=g, kept=n // 2, accuracy=BASELINE_ACCURACY - loss)
                for (g, n), loss in zip(UNITS.items(), (0.2, 0.1), strict=True)
            ),
            reference_accuracy=BASELINE_ACCURACY,
            alternatives=tuple(self.alternatives),
        )
        return WorkResult(payload=to_plain(outcome))

    def _attribution(self, unit: WorkUnit) -> WorkResult:
        keep: dict[str, Any] = {}
        for step in unit.payload["steps"]:
            keep.update(step["parameters"].get("keep", {}))
        outcome = ChangeLosses(groups={g: 1 - len(units) / UNITS[g] for g, units in keep.items()})
        return WorkResult(payload=to_plain(outcome))

    def _teacher(self, unit: WorkUnit) -> WorkResult:
        outcome = TeacherOutcome(
            accuracy=wilson_accuracy(self.teacher_accuracy * 1000, 1000),
            model_accuracy=wilson_accuracy(BASELINE_ACCURACY * 1000, 1000),
        )
        return WorkResult(payload=to_plain(outcome))

    def _trial(self, unit: WorkUnit) -> WorkResult:
        recipe = from_plain(Recipe, unit.payload["recipe"])
        kept = _kept(recipe)
        profile = network(kept["a"], kept["b"])
        finished = unit.payload.get("finished_steps", 0)
        trained = [_epochs(step) for step in recipe.steps if step.pass_name == "recovery"]
        recoveries = [
            _epochs(step) for step in recipe.steps[finished:] if step.pass_name == "recovery"
        ]
        epochs, last = (trained[0], trained[-1]) if trained else (0.0, 0.0)
        cut = sum(
            (1 - kept[g] / n) ** 2 * w for (g, n), w in zip(UNITS.items(), (0.2, 0.1), strict=True)
        )
        ratio, clusters = strength(recipe)
        value = QUANTIZED_ACCURACY - cut / (1 + epochs) - loss(ratio, clusters) / (1 + 2 * last)
        accuracy = wilson_accuracy(value * 1000, 1000)
        file_bytes = profile.weight_count + 1000
        packed = file_bytes * PACKED_SHARE * share(ratio, clusters)
        if ratio or clusters:
            packed *= self.growth
        outcome = TrialOutcome(
            profile=profile,
            file_bytes=file_bytes,
            download_bytes=round(packed) if unit.payload.get("packed") else None,
            accuracy=accuracy if unit.payload["evaluate"] else None,
            selection_accuracy=accuracy,
            parity={"top1_agreement": 1.0},
            stage_seconds={"recover": epochs, "export": 1.0},
            recoveries=tuple(recoveries),
        )
        digest = unit_digest(unit)
        outputs = {"model": digest, "graph": digest[::-1]}
        if unit.payload.get("packed"):
            outputs["packed"] = digest[32:] + digest[:32]
        return WorkResult(payload=to_plain(outcome), outputs=outputs)

    def _narrow_file(self, unit: WorkUnit) -> WorkResult:
        kept = _kept(from_plain(Recipe, unit.payload["recipe"]))
        outcome = NarrowFileOutcome(profile=network(kept["a"], kept["b"]))
        return WorkResult(payload=to_plain(outcome), outputs={"model": unit_digest(unit)})

    def _download_notes(self, unit: WorkUnit) -> WorkResult:
        runtime = unit.payload["target"]["runtime"]["name"]
        reasons = {name: [f"{runtime}: no kernels"] for name in unit.payload["techniques"]}
        return WorkResult(payload={"reasons": reasons})

    def _download_layers(self, unit: WorkUnit) -> WorkResult:
        return WorkResult(payload=to_plain(self.layers))

    def _download_options(self, unit: WorkUnit) -> WorkResult:
        return WorkResult(payload=to_plain(offer(unit.payload)))


def _kept(recipe: Recipe) -> Mapping[str, int]:
    """Return the units that a recipe keeps per group."""
    step = recipe.step("structured_pruning")
    keep: Mapping[str, Any] = step.parameters["keep"] if step else {}
    return {g: len(keep.get(g, range(n))) for g, n in UNITS.items()}


def _epochs(step: PassStep) -> float:
    return float(step.parameters["epochs"])
