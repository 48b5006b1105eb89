"""Targets of projects beside those of the catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.artifacts import InMemoryArtifactStores
from fakes.device_compiler import CompilingExecutor, FakeCompiler
from fakes.libraries import Libraries, make_libraries
from fakes.records import make_asset
from fakes.scripted_work import ScriptedExecutor
from fakes.stores import InMemoryStore
from tightfit_service import bootstrap
from tightfit_service.application.hardware import library as hardware
from tightfit_service.application.hardware.library import HardwareLibrary
from tightfit_service.application.ports import Page
from tightfit_service.application.work.model_facts import ModelFacts
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    InvalidModelError,
    InvalidTargetError,
    NotFoundError,
    ResourceExhaustedError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, Runtime
from tightfit_service.domain.layer_table import parse_one_network
from tightfit_service.domain.network import PruningSpace
from tightfit_service.domain.quantities import Interval

OURS = {"name": "our-board", "core": "cortex-m7", "clock_mhz": 216}


def libraries(**given: Any) -> Libraries:
    """Compose those of the real catalogue, with one uploaded model, `m`, in 8-bit integers."""
    store, artifacts = InMemoryStore(), InMemoryArtifactStores()
    digest = artifacts.of("p").add(b"bytes")
    store.add_asset(make_asset("m", project="p", digest=digest))
    executor = given.pop("executor", None) or ScriptedExecutor()
    executor.models[digest] = INT8_FILE
    return make_libraries(
        store=store,
        executor=executor,
        catalogue=bootstrap.catalogue(),
        emulators=bootstrap.emulators(),
        artifacts=artifacts,
        **given,
    )


@pytest.fixture
def library() -> HardwareLibrary:
    return libraries().hardware


async def test_a_described_target_is_completed_and_found_in_its_project(
    library: HardwareLibrary,
) -> None:
    created = await library.create_target("p", OURS)

    assert created.spec.clock_mhz == 216
    assert "memory.ram_bytes" in created.spec.assumed_fields
    assert (created.project, created.emulator) == ("p", "mcu")
    assert created.create_time is not None
    assert await library.get_target("p", "our-board") == created
    assert await library.resolve("p", "our-board") == created.spec


async def test_other_projects_do_not_see_it(library: HardwareLibrary) -> None:
    await library.create_target("p", OURS)
    for project in ("q", ""):
        with pytest.raises(NotFoundError):
            await library.get_target(project, "our-board")
        listed = await library.list_targets(project, Page(size=500))
        assert "our-board" not in {target.spec.name for target in listed}
    with pytest.raises(NotFoundError):
        await library.delete_target("q", "our-board")


async def test_lists_mix_the_project_and_the_catalogue_page_by_page(
    library: HardwareLibrary,
) -> None:
    await library.create_target("p", OURS)
    names: list[str] = []
    while page := await library.list_targets("p", Page(size=37, after=names[-1] if names else "")):
        names += [target.spec.name for target in page]
    catalogued = [spec.name for spec in bootstrap.catalogue().list()]
    assert names == sorted([*catalogued, "our-board"])


async def test_validating_stores_nothing(library: HardwareLibrary) -> None:
    checked = await library.create_target("p", OURS, validate_only=True)
    assert checked.spec.name == "our-board"
    with pytest.raises(NotFoundError):
        await library.get_target("p", "our-board")


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"name": "nucleo-h743zi2"}, AlreadyExistsError, "target.name"),
        ({"name": ""}, InvalidTargetError, "target.name"),
        ({"clock_mhz": 0}, InvalidTargetError, "target.clock_mhz"),
        ({"core": "z80"}, InvalidTargetError, "target.core"),
    ],
)
async def test_what_cannot_be_a_target_is_refused(
    library: HardwareLibrary, change: dict[str, Any], error: type[Exception], field: str
) -> None:
    with pytest.raises(error) as caught:
        await library.create_target("p", {**OURS, **change}, validate_only=True)
    assert getattr(caught.value, "field", None) == field


async def test_a_mistyped_name_is_answered_with_the_projects_own(library: HardwareLibrary) -> None:
    await library.create_target("p", OURS)
    with pytest.raises(NotFoundError) as caught:
        await library.get_target("p", "our-bord")
    assert "our-board" in caught.value.remedy
    with pytest.raises(NotFoundError) as caught:
        await library.get_target("q", "our-bord")
    assert "our-board" not in caught.value.remedy


async def test_a_project_cannot_fill_the_store(
    library: HardwareLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "MAX_TARGETS_PER_PROJECT", 2)
    for name in ("one", "two"):
        await library.create_target("p", {**OURS, "name": name})
    with pytest.raises(ResourceExhaustedError):
        await library.create_target("p", {**OURS, "name": "three"})
    await library.create_target("q", OURS)


async def test_a_deleted_target_is_gone(library: HardwareLibrary) -> None:
    await library.create_target("p", OURS)
    await library.delete_target("p", "our-board")
    with pytest.raises(NotFoundError):
        await library.resolve("p", "our-board")


async def test_every_target_has_an_emulator_or_is_said_to_have_none() -> None:
    found = libraries()
    for target in await found.hardware.list_targets("", Page(size=500)):
        if target.emulator:
            assert found.costs.plain(target.spec).emulator.name == target.emulator
        else:
            with pytest.raises(UnsupportedError) as caught:
                found.costs.plain(target.spec)
            accelerator = target.spec.accelerator
            assert (accelerator.name if accelerator else target.spec.core) in caught.value.message


LAYERS = """op,in_h,in_w,in_c,out_h,out_w,out_c,kernel_h,kernel_w,macs,weights,biases
CONV_2D,16,16,8,16,16,8,3,3,147456,576,8
"""


async def test_a_table_of_layers_is_estimated_without_a_model(library: HardwareLibrary) -> None:
    spec, costs = await library.estimate("", target="nucleo-h7a3zi-q", layer_table=LAYERS)
    assert set(costs) == {"float32", "int8"}
    assert costs["int8"].macs == 147_456
    assert spec.runtime.name == "X-CUBE-AI"


async def test_another_runtime_is_estimated_in_place_of_the_targets_own(
    library: HardwareLibrary,
) -> None:
    own, costs = await library.estimate("", target="nucleo-h7a3zi-q", layer_table=LAYERS)
    spec, slower = await library.estimate(
        "",
        target="nucleo-h7a3zi-q",
        layer_table=LAYERS,
        runtime=Runtime(name="TFLM (reference kernels)"),
    )
    assert own.runtime != spec.runtime
    assert slower["int8"].latency_ms.value > 2 * costs["int8"].latency_ms.value


class Tool:
    """A file emulator that halves the latency, or refuses."""

    name = "tool"

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.seen: list[bytes] = []

    def supports(self, target: HardwareSpec) -> bool:
        return target.core == "cortex-m7"

    def refine(self, data: bytes, target: HardwareSpec, cost: CostEstimate) -> CostEstimate:
        self.seen.append(data)
        if self.refuses:
            raise InvalidModelError("the tool does not take it", field="model", remedy="none")
        return replace(cost, latency_ms=cost.latency_ms.scaled(0.5))


@pytest.mark.parametrize("refuses", [False, True])
async def test_tools_of_the_runtime_know_more_of_an_int8_file(
    library: HardwareLibrary, refuses: bool
) -> None:
    tool = Tool(refuses=refuses)
    _, plain = await library.estimate("p", target="cortex-m7-tflm", model="m")
    with_tool = libraries(file_emulators=(tool,)).hardware
    _, refined = await with_tool.estimate("p", target="cortex-m7-tflm", model="m")
    assert tool.seen == [b"bytes"]
    assert refined["int8"].flash_bytes == Interval.exact(5)
    assert refined["float32"].latency_ms == plain["float32"].latency_ms
    factor = 1.0 if refuses else 0.5
    assert refined["int8"].latency_ms == plain["int8"].latency_ms.scaled(factor)
    assert ("the tool does not take it" in refined["int8"].warnings) is refuses


INT8_FILE = ModelFacts(
    inputs=(),
    outputs=(),
    opset=13,
    node_count=1,
    parameter_count=584,
    macs=147_456,
    is_quantized=True,
    warnings=(),
    profile=parse_one_network(LAYERS),
    space=PruningSpace(groups=()),
    source_format=ModelFormat.TFLITE,
)


@pytest.mark.parametrize("case", ["installed", "missing", "refuses"])
async def test_an_int8_file_is_costed_by_the_compiler_of_its_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    compiler = FakeCompiler(installed=case != "missing")
    compiler.refuses = {1, 2} if case == "refuses" else ()
    scripted = ScriptedExecutor()
    compiling = CompilingExecutor(scripted, compiler, tmp_path)
    monkeypatch.setattr(scripted, "run", compiling.run)
    library = libraries(executor=scripted, compilers=(compiler,)).hardware
    for _ in range(2):
        _, found = await library.estimate("p", target="cortex-m7-tflm", model="m")
    cost = found["int8"]
    assert cost.compiler == ("fakec 1.2" if case == "installed" else "")
    assert not found["float32"].compiler
    told = {"installed": "", "missing": "pip install fakec", "refuses": "is not known"}[case]
    assert any(told in warning for warning in cost.warnings) is bool(told)
    # What a file costs is remembered; a refusal is not, for it may come from a full disk.
    assert len(compiling.costed) == {"installed": 1, "missing": 0, "refuses": 2}[case]
