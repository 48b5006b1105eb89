"""A limit on the download, met in process on the digits example by real passes, training and packing."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from fakes.artifacts import InMemoryArtifactStore, InMemoryArtifactStores
from fakes.clock import FakeClock
from fakes.inline_executor import InlineExecutor
from fakes.search_bench import TARGET, run_search
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit.dataset_archive import packed
from tightfit.dataset_file import read_dataset_file
from tightfit.packed_file import unpack
from tightfit_service.application.course import download_limit
from tightfit_service.application.scheduling.journal import EventHub
from tightfit_service.application.units.kinds import Nothing
from tightfit_service.application.work.model_import import IMPORT_MODEL
from tightfit_service.bootstrap import handler_table
from tightfit_service.domain.budget import Budget, Constraint, Quantity, SearchLimits
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.job import Job, JobSpec, JobState
from tightfit_service.domain.trial import Trial
from tightfit_service.settings import Settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
EPOCHS = 0.5
LIMIT = 0.55
"""Of the packed file of the model that is only quantized."""


class Site:
    """A job on the digits with all it needs, in this process."""

    def __init__(self, folder: Path) -> None:
        self.artifacts = InMemoryArtifactStore()
        self.store, self.telemetry, self.clock = InMemoryStore(), RecordingTelemetry(), FakeClock()
        self.executor = InlineExecutor(
            handlers=handler_table(Settings(data_dir=folder / "data")),
            artifacts=InMemoryArtifactStores(self.artifacts),
            scratch_dir=folder / "scratch",
        )
        self.model = self.artifacts.add((EXAMPLE / "digits.onnx").read_bytes())
        with packed(read_dataset_file(EXAMPLE / "dataset.yaml")) as archive:
            self.dataset = self.artifacts.add(archive.path.read_bytes())

    async def run(self, name: str, *constraints: Constraint, packed: bool = False) -> Job:
        await self.executor.start()
        imported = await self.executor.run(
            IMPORT_MODEL.unit(
                Nothing(), project="default", inputs={"model": self.model}, label="digits"
            ),
            on_progress=lambda _share, _text: None,
        )
        now = self.clock.now()
        job = Job(
            job_id=name,
            project="default",
            spec=JobSpec(
                model_digest=self.model,
                model_name="m",
                target=TARGET,
                budget=Budget(constraints=constraints),
                dataset_digest=self.dataset,
                dataset_name="d",
                output_format=ModelFormat.ONNX,
                search_limits=SearchLimits(max_trials=8, max_seconds=600),
                packed=packed,
            ),
            state=JobState.QUEUED,
            create_time=now,
            update_time=now,
        )
        self.store.create_job(job)
        return await run_search(
            job,
            store=self.store,
            hub=EventHub(),
            executor=self.executor,
            telemetry=self.telemetry,
            clock=self.clock,
            facts=IMPORT_MODEL.outcome(imported),
            graph_digest=imported.outputs["graph"],
        )

    def trials(self, name: str) -> list[Trial]:
        return list(self.store.list_trials(name))

    def file(self, trial: Trial, name: str) -> bytes:
        data = self.artifacts.contents[trial.artifacts[name]]
        assert hashlib.sha256(data).hexdigest() == trial.artifacts[name]
        return data


@pytest.mark.long
def test_the_digits_are_packed_into_a_limit_and_unpacked_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_limit, "EPOCHS", EPOCHS)
    site = Site(tmp_path)
    asked = asyncio.run(site.run("asked", packed=True))
    assert asked.result.best_trial == 0
    (quantized,) = site.trials("asked")
    assert quantized.metrics is not None
    whole = quantized.metrics.download_bytes
    assert whole == len(site.file(quantized, "packed"))
    assert unpack(site.file(quantized, "packed")) == site.file(quantized, "model")

    limits = (
        Constraint(quantity=Quantity.DOWNLOAD, limit=LIMIT * whole),
        Constraint(quantity=Quantity.ACCURACY, max_drop=0.03),
    )
    job = asyncio.run(site.run("limited", *limits))
    assert job.state is JobState.SUCCEEDED, job.result.infeasibility
    assert job.result.best_trial is not None
    best = site.trials("limited")[job.result.best_trial]
    assert best.metrics is not None
    assert best.metrics.accuracy is not None
    assert best.metrics.download_bytes == len(site.file(best, "packed")) <= LIMIT * whole
    assert unpack(site.file(best, "packed")) == site.file(best, "model")
    changed = {step.pass_name for step in best.recipe.steps} & {"sparsity", "clustering"}
    assert changed
    assert any("multiply zeros" in note.message for note in job.result.notes)
