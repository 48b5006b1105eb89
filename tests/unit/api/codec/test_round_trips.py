"""Every value of the domain survives the way to the wire and back, bytes included."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import from_wire
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.asset import dataset_to_proto, model_to_proto
from tightfit_service.api.codec.budget import (
    budget_from_proto,
    budget_to_proto,
    search_limits_from_proto,
    search_limits_to_proto,
)
from tightfit_service.api.codec.enums import EnumCodec
from tightfit_service.api.codec.hardware import spec_to_proto
from tightfit_service.api.codec.job import event_to_proto, job_to_proto
from tightfit_service.api.codec.metrics import metrics_to_proto
from tightfit_service.api.codec.times import (
    duration_from_proto,
    duration_to_proto,
    timestamp_from_proto,
    timestamp_to_proto,
)
from tightfit_service.api.codec.trial import recipe_to_proto, trial_to_proto
from tightfit_service.application.ports import AssetRecord
from tightfit_service.domain.budget import (
    Budget,
    Constraint,
    LimitSource,
    Objective,
    Quantity,
    SearchLimits,
)
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.hardware import (
    Accelerator,
    AcceleratorKind,
    Fallback,
    HardwareSpec,
    Memory,
    ModelFormat,
    NumberFormat,
    Power,
    Runtime,
)
from tightfit_service.domain.job import (
    Infeasibility,
    Job,
    JobEvent,
    JobResult,
    JobSpec,
    LayerAttribution,
    Relaxation,
    TeacherModel,
)
from tightfit_service.domain.network import ImportanceCriterion, OperatorKind
from tightfit_service.domain.quantities import Interval
from tightfit_service.domain.recipe import PassStep, Recipe
from tightfit_service.domain.trial import Metrics, Trial

IDS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
TEXTS = st.text(max_size=20)
NUMBERS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 2**53)
SMALL_COUNTS = st.integers(0, 2**31 - 1)
INDICES = st.integers(0, 999_999)
TIMES = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2100, 1, 1)).map(  # noqa: DTZ001
    lambda time: time.replace(tzinfo=UTC)
)
MICROSECONDS = st.integers(0, 10**12).map(lambda n: n / 10**6)


def _few(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(elements, max_size=3).map(tuple)


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    limits = st.floats(1e-6, 1e12)
    constraints = []
    for source in LimitSource:
        for quantity in draw(st.lists(st.sampled_from(Quantity), unique=True)):
            if quantity is Quantity.ACCURACY:
                drop = draw(st.booleans()) and source is LimitSource.USER
                key = "max_drop" if drop else "limit"
                value = draw(st.floats(0.01, 0.99))
                constraints.append(Constraint(quantity=quantity, source=source, **{key: value}))
                continue
            whole = quantity in (Quantity.RAM, Quantity.SIZE, Quantity.DOWNLOAD)
            limit = float(draw(st.integers(1, 2**48))) if whole else draw(limits)
            constraints.append(Constraint(quantity=quantity, source=source, limit=limit))
    return Budget(constraints=tuple(constraints))


def _as_set(budget: Budget) -> frozenset[Constraint]:
    return frozenset(budget.constraints)


OPTIONAL_POSITIVE = st.none() | st.floats(1e-3, 1e6)
RATES = st.dictionaries(
    st.sampled_from(NumberFormat), st.floats(1e-3, 10_000), min_size=1, max_size=3
)
HARDWARE = st.builds(
    HardwareSpec,
    name=IDS,
    display_name=TEXTS.filter(bool),
    core=TEXTS.filter(bool),
    core_count=st.integers(1, 1024),
    clock_mhz=st.floats(1, 10_000),
    accelerator=st.none()
    | st.builds(
        Accelerator,
        kind=st.sampled_from(AcceleratorKind),
        name=TEXTS,
        clock_mhz=st.floats(1, 10_000),
        macs_per_cycle=RATES,
        tops=RATES,
        memory_bytes=st.integers(0, 2**40),
        bandwidth_mb_s=OPTIONAL_POSITIVE,
        transfer_mb_s=OPTIONAL_POSITIVE,
        transfer_us=st.floats(0, 1e6),
        operators=_few(st.sampled_from(OperatorKind)),
        fallback=st.sampled_from(Fallback),
    ),
    isa_features=_few(TEXTS),
    number_formats=st.lists(st.sampled_from(NumberFormat), min_size=1, max_size=3).map(tuple),
    channel_multiple=st.integers(1, 1024),
    output_format=st.sampled_from(ModelFormat),
    memory=st.builds(
        Memory,
        ram_bytes=st.integers(1, 2**40),
        flash_bytes=st.integers(1, 2**48),
        ram_bandwidth_mb_s=OPTIONAL_POSITIVE,
        flash_bandwidth_mb_s=OPTIONAL_POSITIVE,
        external_ram_bytes=st.integers(0, 2**40),
        external_ram_bandwidth_mb_s=OPTIONAL_POSITIVE,
        cache_bytes=st.integers(0, 2**32),
        word_bytes=st.integers(1, 64),
        alignment_bytes=st.integers(1, 4_096),
    ),
    runtime=st.builds(Runtime, name=TEXTS.filter(bool), version=TEXTS),
    power=st.builds(
        Power,
        active_mw=OPTIONAL_POSITIVE,
        accelerator_mw=OPTIONAL_POSITIVE,
        idle_mw=OPTIONAL_POSITIVE,
        sleep_mw=OPTIONAL_POSITIVE,
        supply_v=st.none() | st.floats(1e-3, 1_000),
    ),
    isp_features=_few(TEXTS),
    sources=_few(TEXTS),
    assumed_fields=_few(TEXTS),
)
INTERVALS = st.builds(Interval, value=NUMBERS, low=NUMBERS, high=NUMBERS)
METRICS = st.builds(
    Metrics,
    cost=st.builds(
        CostEstimate,
        latency_ms=INTERVALS,
        energy_mj=INTERVALS,
        peak_ram_bytes=INTERVALS,
        flash_bytes=INTERVALS,
        macs=COUNTS,
        layers=st.just(()),
        confidence=NUMBERS,
        warnings=_few(TEXTS),
    ),
    file_bytes=COUNTS,
    download_bytes=st.none() | COUNTS,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS | st.floats(-1e6, 1e6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
RECIPES = st.builds(
    Recipe,
    source_digest=DIGESTS,
    seed=st.integers(0, 2**62),
    target=TEXTS,
    output_format=st.sampled_from(ModelFormat).map(str),
    steps=_few(
        st.builds(PassStep, pass_name=TEXTS, parameters=st.dictionaries(TEXTS, PLAIN, max_size=3))
    ),
    tool_versions=st.dictionaries(TEXTS, TEXTS, max_size=3),
    version=SMALL_COUNTS,
)
RESULTS = st.builds(
    JobResult,
    baseline=st.none() | METRICS,
    baseline_int8=st.none() | METRICS,
    best_trial=st.none() | INDICES,
    pareto_trials=_few(INDICES),
    infeasibility=st.none()
    | st.builds(
        Infeasibility,
        closest_trials=_few(INDICES),
        relaxations=_few(
            st.builds(
                Relaxation,
                limit=NUMBERS,
                needed=st.none() | NUMBERS,
                trial_index=st.none() | INDICES,
            )
        ),
    ),
    layers=_few(
        st.builds(
            LayerAttribution,
            macs_before=COUNTS,
            macs_after=COUNTS,
            latency_ms_before=NUMBERS,
            latency_ms_after=NUMBERS,
            channels_before=SMALL_COUNTS,
            channels_after=SMALL_COUNTS,
            accuracy_cost=st.none() | NUMBERS,
            format_cost=st.none() | NUMBERS,
            predicted_alone=st.none() | NUMBERS,
            measured_alone=st.none() | NUMBERS,
            format_cost_after=st.none() | NUMBERS,
        )
    ),
)


@given(budgets())
def test_budgets(budget: Budget) -> None:
    message = budget_to_proto(budget)
    again = type(message).FromString(message.SerializeToString())

    assert _as_set(from_wire.budget(again)) == _as_set(budget)


@given(budgets())
def test_what_the_target_implies_is_not_for_a_caller_to_say(budget: Budget) -> None:
    given_in = budget_from_proto(budget_to_proto(budget))

    assert all(constraint.source is LimitSource.USER for constraint in given_in.constraints)


@given(
    st.builds(
        SearchLimits,
        max_trials=st.integers(1, 10_000),
        max_seconds=st.integers(10**6, 30 * 86_400 * 10**6).map(lambda n: n / 10**6),
    )
)
def test_search_limits(limits: SearchLimits) -> None:
    assert search_limits_from_proto(search_limits_to_proto(limits)) == limits


@given(HARDWARE)
def test_hardware(spec: HardwareSpec) -> None:
    message = spec_to_proto(spec)

    assert from_wire.hardware(type(message).FromString(message.SerializeToString())) == spec


@given(METRICS)
def test_metrics(metrics: Metrics) -> None:
    message = metrics_to_proto(metrics)

    assert from_wire.metrics(type(message).FromString(message.SerializeToString())) == metrics


@given(RECIPES)
def test_recipes(recipe: Recipe) -> None:
    message = recipe_to_proto(recipe)

    assert from_wire.recipe(type(message).FromString(message.SerializeToString())) == recipe


@settings(max_examples=40)
@given(
    trial=st.builds(
        Trial,
        index=INDICES,
        recipe=RECIPES,
        metrics=st.none() | METRICS,
        predicted_accuracy=st.none() | NUMBERS,
        violations=st.just(()),
        artifacts=st.dictionaries(TEXTS, DIGESTS, max_size=2),
        stage_seconds=st.dictionaries(TEXTS, NUMBERS, max_size=2),
        notes=_few(TEXTS),
        format_notes=_few(TEXTS),
    ),
    project_id=IDS,
    job_id=IDS,
)
def test_trials(trial: Trial, project_id: str, job_id: str) -> None:
    message = trial_to_proto(trial, project_id=project_id, job_id=job_id)
    again = type(message).FromString(message.SerializeToString())

    assert from_wire.trial(again) == trial
    assert again.feasible == trial.is_feasible


@settings(max_examples=40)
@given(
    st.builds(
        Job,
        job_id=IDS,
        project=IDS,
        spec=st.builds(
            JobSpec,
            model_digest=DIGESTS,
            model_name=st.just("projects/p/models/m"),
            target=HARDWARE,
            budget=budgets(),
            dataset_digest=st.none() | DIGESTS,
            dataset_name=st.just("projects/p/datasets/d") | st.just(""),
            objective=st.builds(Objective, quantity=st.sampled_from(Quantity)),
            search_limits=st.just(SearchLimits()),
            output_format=st.none() | st.sampled_from(ModelFormat),
            seed=st.integers(0, 2**62),
            packed=st.booleans(),
            runner_labels=st.dictionaries(TEXTS, TEXTS, max_size=2),
            teachers=st.lists(
                st.builds(
                    TeacherModel,
                    name=IDS.map(lambda name: f"projects/p/models/{name}"),
                    digest=DIGESTS,
                ),
                max_size=4,
            ).map(tuple),
            importance=st.none() | st.sampled_from(ImportanceCriterion),
        ),
        create_time=TIMES,
        update_time=TIMES,
        start_time=st.none() | TIMES,
        end_time=st.none() | TIMES,
        revision=COUNTS,
        request_id=TEXTS,
        error=TEXTS,
        error_reason=TEXTS,
        spent_seconds=MICROSECONDS,
        result=RESULTS,
    )
)
def test_jobs(job: Job) -> None:
    message = job_to_proto(job)
    again = from_wire.job(type(message).FromString(message.SerializeToString()))

    assert _as_set(again.spec.budget) == _as_set(job.spec.budget)
    assert again.result == job.result
    for name in Job.__dataclass_fields__:
        if name != "spec":
            assert getattr(again, name) == getattr(job, name), name
    for name in JobSpec.__dataclass_fields__:
        if name != "budget":
            assert getattr(again.spec, name) == getattr(job.spec, name), name


@given(
    st.builds(
        JobEvent,
        job_id=IDS,
        sequence=COUNTS,
        time=TIMES,
        trial_index=st.none() | INDICES,
        fraction=st.none() | NUMBERS,
    )
)
def test_events(event: JobEvent) -> None:
    message = event_to_proto(event, project_id="p")

    assert from_wire.event(type(message).FromString(message.SerializeToString())) == event


@pytest.mark.parametrize("to_proto", [model_to_proto, dataset_to_proto])
@given(
    record=st.builds(
        AssetRecord,
        asset_id=IDS,
        project=IDS,
        size_bytes=COUNTS,
        create_time=TIMES,
        description=st.dictionaries(TEXTS, PLAIN, max_size=3),
    )
)
def test_assets(to_proto: Any, record: AssetRecord) -> None:
    message = to_proto(record)

    assert message.name.startswith(f"projects/{record.project}/")
    assert message.name.endswith(f"/{record.asset_id}")
    assert (message.display_name, message.digest) == (record.display_name, record.digest)
    assert message.size_bytes == record.size_bytes
    assert timestamp_from_proto(message.create_time) == record.create_time


@pytest.mark.parametrize(
    "codec", [value for value in vars(enums).values() if isinstance(value, EnumCodec)]
)
def test_enums_know_every_value_of_both_sides(codec: EnumCodec[Any]) -> None:
    for value, number in codec._numbers.items():
        assert codec.from_proto(number, field="x") is value
    assert sorted(codec._numbers.values()) == list(range(1, len(codec._numbers) + 1))


@given(TIMES)
def test_times(time: datetime) -> None:
    assert timestamp_from_proto(timestamp_to_proto(time)) == time


@given(MICROSECONDS)
def test_durations(seconds: float) -> None:
    assert duration_from_proto(duration_to_proto(seconds)) == seconds
