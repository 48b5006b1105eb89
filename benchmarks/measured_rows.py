"""Reads tables of measured devices (MLPerf Tiny results, other boards) into one shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.layer_tables import MLPERF_TASK_MODELS, number, read_rows

_CORES: Mapping[str, str] = {
    "cortex-m0": "cortex-m0+",
    "cortex-m0+": "cortex-m0+",
    "cortex-m4": "cortex-m4",
    "cortex-m4f": "cortex-m4",
    "cortex-m7": "cortex-m7",
    "cortex-m7f": "cortex-m7",
    "cortex-m33": "cortex-m33",
    "cortex-m33f": "cortex-m33",
    "cortex-m55": "cortex-m55",
    "cortex-m85": "cortex-m85",
}
_SAME_SILICON = (("stm32u575", "stm32u5"), ("stm32u585", "stm32u5"))
"""Parts that differ in peripherals only."""
_SPEED_TUNED = frozenset({"STMicroelectronics", "Krai"})
"""Submitters whose MLPerf rows were compiled for time: with X-CUBE-AI 8.1 their ic row on the L4R5 equals
the `time` row of an independent comparison of its three modes."""


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """One measured network on one device.

    Attributes:
        device: Key of the silicon; rows of one device are held out together.
        model: Key of the layer table, or the model's name where there is none.
        is_float: Whether the network was computed in float32.
        weight: 1 over the number of near-duplicates of the row.
    """

    source: str
    group: str
    device: str
    board: str
    core: str
    clock_mhz: float
    ram_bytes: int
    flash_bytes: int
    runtime: str
    runtime_version: str
    model: str
    family: str
    is_float: bool
    latency_ms: float | None
    energy_mj: float | None = None
    power_mw: float | None = None
    supply_v: float | None = None
    activation_bytes: float | None = None
    total_ram_bytes: float | None = None
    weights_flash_bytes: float | None = None
    macs: float | None = None
    params: float | None = None
    submitter: str = ""
    note: str = ""
    accelerator: str = ""
    weight: float = 1.0


def family_of(model: str) -> str:
    """Return the architecture that a model is a size of."""
    name = model.lower().removeprefix("st_")
    for prefix, family in (
        ("ic_", "resnet"),
        ("resnet_v1", "resnet"),
        ("vww_mobilenet", "mobilenet_v1"),
        ("mobilenet_v1", "mobilenet_v1"),
        ("ssd_mobilenet_v1", "ssd_mobilenet_v1"),
        ("mobilenet_v2", "mobilenet_v2"),
        ("ssd_mobilenet_v2", "ssd_mobilenet_v2"),
        ("fdmobilenet", "fdmobilenet"),
        ("efficientnet", "efficientnet"),
        ("yolo", "yolo"),
        ("squeezenet", "squeezenet"),
        ("mnist", "mnist"),
        ("stmnist", "mnist"),
        ("miniresnet", "miniresnet"),
        ("yamnet", "yamnet"),
        ("gmp", "gmp"),
        ("ign", "ign"),
        ("mcunet", "mcunet"),
    ):
        if name.startswith(prefix) or model.lower().startswith(prefix):
            return family
    return model.lower().split("_")[0]


def core_of(processor: str) -> str:
    """Return the core class of a printed processor name, or "" when it is no known Cortex-M."""
    match = re.search(r"cortex-m\d+[f+]?", processor.lower())
    return _CORES.get(match.group(), "") if match else ""


def device_of(soc: str) -> str:
    """Return the key of the silicon: the part number without package and memory letters."""
    text = soc.lower().replace("nucleo-", "stm32").replace("-disco", "")
    match = re.search(r"stm32[a-z]+\d[a-z0-9]\d|(?<!\w)[ul]\d[a-z]\d|b-u585i", text)
    key = match.group().replace("b-u585i", "stm32u585") if match else re.sub(r"\W+", "-", text)
    if not key.startswith("stm32") and match:
        key = "stm32" + key
    for part, same in _SAME_SILICON:
        if key.startswith(part):
            return same
    return key


def read_mlperf(path: Path) -> list[MeasuredRow]:
    """Return the Cortex-M rows of a table of MLPerf Tiny results that have a latency or an energy."""
    rows = []
    for row in read_rows(path):
        core, task = core_of(row["processor"]), row["task"]
        clock = number(row["clock_mhz"])
        if not core or clock is None or task not in MLPERF_TASK_MODELS:
            continue
        version = row["runtime_version"]
        if row["runtime"] in {"X-CUBE-AI", "STEdgeAI"} and row["submitter"] in _SPEED_TUNED:
            version = f"{version} time"
        variant = re.search(r"(max_performance|min_ram)", row["system_id"])
        if variant:
            version = f"{version} {variant.group()}"
        energy = number(row["energy_uj"]) if task != "sww" else None
        rows.append(
            MeasuredRow(
                source=row["source"],
                group="mlperf",
                device=device_of(row["soc"] or row["board"]),
                board=row["board"],
                core=core,
                clock_mhz=clock,
                ram_bytes=int((number(row["ram_kb"]) or 256) * 1024),
                flash_bytes=int((number(row["flash_kb"]) or 1024) * 1024),
                runtime=row["runtime"],
                runtime_version=version,
                model=MLPERF_TASK_MODELS[task],
                family=family_of(MLPERF_TASK_MODELS[task]),
                is_float=row["precision"] == "fp32",
                latency_ms=number(row["latency_ms"]),
                energy_mj=energy / 1000 if energy else None,
                power_mw=number(row["avg_power_mw"]) if task != "sww" else None,
                supply_v=number(row["supply_v"]),
                submitter=row["submitter"],
                note=row["note"],
                accelerator=row["accelerator"],
            )
        )
    return _weighted(rows)


TINYENGINE_CLOCK_MHZ = 480.0
"""Not stated in that comparison; the part's maximum, at which X-CUBE-AI 7.3 takes the cycles per product
that it takes for similar networks on the same core."""
_DEVICE_DEFAULTS: Mapping[str, tuple[int, int]] = {
    "stm32h747i-disco": (1024 * 1024, 2048 * 1024),
    "b-u585i-iot02a": (768 * 1024, 2048 * 1024),
}


def read_devices(path: Path, clocks: Mapping[str, float] | None = None) -> list[MeasuredRow]:
    """Return the Cortex-M rows of a table of measured devices whose clock is known.

    Args:
        path: The table.
        clocks: MHz by silicon, for rows that do not state their clock.
    """
    rows = []
    for row in read_rows(path):
        core, clock = core_of(row["processor"]), number(row["clock_mhz"])
        if clock is None and clocks:
            clock = clocks.get(device_of(row["device"]))
        if row["group"] == "tinyengine":
            clock = TINYENGINE_CLOCK_MHZ
        if not core or clock is None or row["group"] == "fc_mcu":
            continue
        model = row["layers_key"] or row["model"]
        ram, flash = _DEVICE_DEFAULTS.get(row["device"].lower(), (512 * 1024, 1024 * 1024))
        kib = {
            key: number(row[key])
            for key in ("activations_ram_kib", "total_ram_kib", "weights_flash_kib")
        }
        rows.append(
            MeasuredRow(
                source=row["source_repo_path"],
                group=row["group"],
                device=device_of(row["device"]),
                board=row["device"],
                core=core,
                clock_mhz=clock,
                ram_bytes=ram,
                flash_bytes=flash,
                runtime=row["runtime"],
                runtime_version=re.sub(r"ver\. not stated", "", row["runtime_version"]).strip(),
                model=model,
                family=family_of(model),
                is_float=row["precision"] == "fp32",
                latency_ms=number(row["latency_ms"]),
                activation_bytes=_bytes(kib["activations_ram_kib"]),
                total_ram_bytes=_bytes(kib["total_ram_kib"]),
                weights_flash_bytes=_bytes(kib["weights_flash_kib"]),
                macs=number(row["macs"]),
                params=number(row["params"]),
                note=row["note"],
                accelerator=row["accelerator"],
            )
        )
    return _weighted(rows)


def _bytes(kib: float | None) -> float | None:
    return kib * 1024 if kib is not None else None


def _weighted(rows: list[MeasuredRow]) -> list[MeasuredRow]:
    from dataclasses import replace

    counts: dict[tuple[object, ...], int] = {}

    def key(row: MeasuredRow) -> tuple[object, ...]:
        latency = row.latency_ms or 0.0
        return (
            row.device,
            row.runtime,
            row.model,
            row.is_float,
            f"{latency * row.clock_mhz:.1e}" if latency else "",
        )

    for row in rows:
        counts[key(row)] = counts.get(key(row), 0) + 1
    return [replace(row, weight=1 / counts[key(row)]) for row in rows]
