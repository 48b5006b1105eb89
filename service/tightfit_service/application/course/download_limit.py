"""Meeting a limit on the download: what is said before, and the last stage of a search that has one.

Widths and number formats decide what a device stores and computes; what is downloaded also depends on how
well weights can be coded. So the search looks for a model that meets everything else first. Where its packed
file is too large, it is measured what each of its layers bears, and copies of it go on with zeros in
blocks of the target's memory word, with few values per layer, or with both, each trained again for a
while with zeros and equal values kept. What is predicted to lose least is tried first, until one fits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from tightfit_service.application.course.download_plan import DownloadPlan
from tightfit_service.application.course.forms import ROUNDING_FELT
from tightfit_service.application.course.life import JobLife
from tightfit_service.application.plain import from_plain
from tightfit_service.application.ports import RecoverySettings, WorkResult, WorkUnit
from tightfit_service.application.recipes.making import trained_steps
from tightfit_service.application.recipes.steps import RECOVERY_STEP, quantization_of
from tightfit_service.application.recipes.techniques import DOWNLOAD_PASSES, download_passes
from tightfit_service.application.trials.book import EarlierTrial
from tightfit_service.application.trials.choice import best_trial
from tightfit_service.application.use_cases import JobRequest
from tightfit_service.application.work.download import (
    DOWNLOAD_LAYERS,
    DOWNLOAD_NOTES,
    DOWNLOAD_OPTIONS,
    DownloadLayersTask,
    DownloadNotesTask,
    DownloadOffer,
    DownloadOption,
    DownloadOptionsTask,
)
from tightfit_service.application.work.download_files import with_shared_scales
from tightfit_service.application.work.download_layers import NOT_MEASURED, LayerStudy
from tightfit_service.domain.budget import Quantity
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.job import PreflightNote
from tightfit_service.domain.trial import Trial, TrialRole, cost_of

PACKABLE = (ModelFormat.TFLITE, ModelFormat.ONNX)
"""Formats of one file whose constants the packer knows."""

MAX_TRIALS = 4
"""Trials of this stage."""

EPOCHS = 5.0
"""Of each training of this stage; zeros and clusters are found on trained weights."""

STUDY_TIME_SHARE = 0.2
"""Of what is left for this stage: so long it may be measured what each layer bears."""

LEAST_STUDY_SECONDS = 2.0
"""With less, nothing is measured: not even one level of a small network would be done."""

LOSS_LEFT = 0.1
"""What training is assumed to leave of the accuracy lost without it."""

Run = Callable[[WorkUnit], Awaitable[WorkResult]]


def check_packable(request: JobRequest, output_format: ModelFormat) -> None:
    """Refuse to pack what is not packed for download.

    Raises:
        InvalidRequestError: A packed file or a limit on it, for a format that is not packed.
    """
    is_limited = request.budget.limit_of(Quantity.DOWNLOAD) is not None
    if (request.packed or is_limited) and output_format not in PACKABLE:
        raise InvalidRequestError(
            f"results in {output_format} are not packed for download",
            field="budget.max_download_bytes" if is_limited else "packed",
            remedy=f"ask for {' or '.join(PACKABLE)}, or leave it out",
        )


async def download_notes(
    run: Run,
    *,
    project: str,
    graph_digest: str,
    target: HardwareSpec,
    techniques: Sequence[str] = DOWNLOAD_PASSES,
) -> tuple[PreflightNote, ...]:
    """Return what a model and its target gain from techniques for the download besides: mostly nothing."""
    result = await run(
        DOWNLOAD_NOTES.unit(
            DownloadNotesTask(target=target, techniques=tuple(techniques)),
            project=project,
            inputs={"graph": graph_digest},
            label="what a smaller download does not bring",
        )
    )
    reasons = DOWNLOAD_NOTES.outcome(result).reasons
    return tuple(
        PreflightNote(
            code="DOWNLOAD_ONLY",
            message=f"{name} makes the download smaller and nothing faster: {'; '.join(texts)}",
        )
        for name, texts in reasons.items()
        if texts
    )


class DownloadStage:
    """The last stage of one job's search; does nothing where the download is not limited."""

    def __init__(self, life: JobLife, *, after_trial: Callable[[], Awaitable[None]]) -> None:
        self._life = life
        self._spec = life.spec
        self._limit = life.budget.limit_of(Quantity.DOWNLOAD)
        self._techniques = download_passes(life.spec)
        self._recipes = life.recipes
        self._stages = life.stages
        self._book = life.book
        self._notes = life.notes
        self._time = life.time
        self._after_trial = after_trial
        self._least: float | None = None
        self._study = NOT_MEASURED

    @property
    def reachable(self) -> Mapping[Quantity, float]:
        """The smallest packed file that was predicted, where even that is above the limit."""
        return {} if self._least is None else {Quantity.DOWNLOAD: self._least}

    @property
    def base(self) -> Trial | None:
        """The best trial that meets everything but the limit; None where one meets that as well."""
        if self._limit is None or self._book.best is not None:
            return None
        unpacked = [replace(t, violations=()) for t in self._book.trials if t.fits_unpacked]
        best = best_trial(unpacked, self._spec.objective.quantity)
        return None if best is None else self._book.get(best.index)

    async def announce(self) -> None:
        """Say before the search what meeting the limit will not bring."""
        named = [name for name in DOWNLOAD_PASSES if name in self._spec.techniques]
        if self._limit is None:
            if named:
                await self._notes.add(
                    "TECHNIQUE_UNUSED",
                    f"{' and '.join(named)} would only make the download smaller, whose size is "
                    "not limited",
                )
            return
        found = await download_notes(
            self._stages.run,
            project=self._life.context.project,
            graph_digest=self._life.context.graph_digest,
            target=self._spec.target,
            techniques=self._techniques,
        )
        await self._notes.extend(found, stage="preflight")

    async def run(self, *, can_train: bool) -> None:
        """Try sparsity and clustering on the best trial, until one fits or what is allowed is spent."""
        base = self.base
        self._time.begin_last_stage()
        if base is None or self._limit is None or not self._techniques:
            return
        plan = DownloadPlan(limit=self._limit, packed_bytes=_download_of(base))
        if self._time.may_start_trial(self._book.trials, keep_for_final=0):
            self._study = await self._studied(base)
        for _ in range(MAX_TRIALS):
            if not self._time.may_start_trial(self._book.trials, keep_for_final=0):
                break
            if plan.aim is not None:
                plan.take(await self._offered(base, plan.aim))
                await self._say_out_of_reach(plan)
            option = plan.next()
            if option is None:
                break
            trial = await self._tried(base, option, can_train=can_train)
            await self._after_trial()
            if trial.is_feasible:
                break
            if trial.metrics is not None:
                plan.learn(
                    option, packed_bytes=_download_of(trial), fits_unpacked=trial.fits_unpacked
                )

    async def _say_out_of_reach(self, plan: DownloadPlan) -> None:
        if plan.least is None or self._least is not None:
            return
        self._least = float(plan.least.download_bytes)
        await self._notes.add(
            "DOWNLOAD_BELOW_REACH",
            f"the download limit of {self._limit:.0f} bytes is out of reach: {plan.least.label} "
            f"is predicted to bring {plan.least.download_bytes}",
        )

    async def _offered(self, base: Trial, aim: int) -> DownloadOffer:
        """Ask a worker what would bring the trial's packed file to a size."""
        await self._stages.enter(
            "solve", f"what brings {_download_of(base):.0f} bytes to {aim}", begin=0.955, end=0.96
        )
        return await self._stages.ask(
            DOWNLOAD_OPTIONS,
            DownloadOptionsTask(
                model=self._life.facts,
                recipe=base.recipe,
                target=self._spec.target,
                techniques=tuple(self._techniques),
                packed_bytes=int(_download_of(base)),
                aim_bytes=aim,
                layers=self._study,
            ),
            self._inputs(base),
        )

    async def _studied(self, base: Trial) -> LayerStudy:
        """Let a worker measure what each layer bears, while there is time; say where there was none."""
        study = replace(NOT_MEASURED, is_cut_short=True)
        seconds = STUDY_TIME_SHARE * self._time.left(self._book.trials, shared_by=1)
        if seconds >= LEAST_STUDY_SECONDS:
            await self._stages.enter(
                "sensitivity", "what zeros and shared values cost each layer", begin=0.95, end=0.955
            )
            study = await self._stages.ask(
                DOWNLOAD_LAYERS,
                DownloadLayersTask(
                    model=self._life.facts,
                    recipe=base.recipe,
                    target=self._spec.target,
                    techniques=tuple(self._techniques),
                    packed_bytes=int(_download_of(base)),
                    max_seconds=round(seconds, 1),
                ),
                self._inputs(base),
            )
        if study.is_cut_short and not study.layers:
            await self._notes.add(
                "UNIFORM_LEVELS",
                "there was no time to measure what each layer bears: sparsity and clustering are as "
                "strong in all layers",
            )
        return study

    def _inputs(self, base: Trial) -> Mapping[str, str]:
        return {**self._life.inputs, "start": base.artifacts["graph"]}

    async def _tried(self, base: Trial, option: DownloadOption, *, can_train: bool) -> Trial:
        text = f"a smaller download, {option.download_bytes} bytes as predicted: {option.label}"
        await self._stages.enter("finish", text, begin=0.96, end=0.97)
        quantization = quantization_of(base.recipe)
        if option.clustering is not None:
            quantization = with_shared_scales(quantization)
        assert base.metrics is not None
        known = base.metrics.selection_accuracy
        predicted = None
        if known is not None and option.lost is not None:
            predicted = known.value - option.lost * (LOSS_LEFT if can_train else 1.0)
        recovery = self._training(base, trainings=len(option.steps)) if can_train else None
        return await self._book.run(
            self._book.next_index,
            TrialRole.FINALIST,
            lambda: self._recipes.continued(
                base.recipe, further=option.steps, recovery=recovery, quantization=quantization
            ),
            evaluate=True,
            predicted_accuracy=predicted,
            after=EarlierTrial(trial=base, steps=len(trained_steps(base.recipe))),
        )

    def _training(self, base: Trial, *, trainings: int) -> RecoverySettings:
        """Return each of the trainings of a trial; half of the time left is for the trials after it."""
        before = base.recipe.step(RECOVERY_STEP)
        knows_rounding = self._book.loss_by_rounding() > ROUNDING_FELT
        if before is not None:
            earlier = from_plain(RecoverySettings, before.parameters)
            knows_rounding = knows_rounding or earlier.quantization_aware
        seconds = self._time.left(self._book.trials, shared_by=2)
        return RecoverySettings(
            epochs=EPOCHS,
            max_seconds=round(max(1.0, seconds / trainings), 1),
            quantization_aware=knows_rounding,
            seed=self._spec.seed,
        )


def _download_of(trial: Trial) -> float:
    """Return the size of a trial's packed file, bytes."""
    assert trial.metrics is not None
    return cost_of(trial.metrics, Quantity.DOWNLOAD)
