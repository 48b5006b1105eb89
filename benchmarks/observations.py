"""What calibrations measured, in files that fits are made of anywhere, without the device.

A file has the latencies and what the operators took, not the networks: these are made anew, by their
places in the designed set.

    save     write what the target of a work folder's server was calibrated by
    restore  put it into a work folder, where `calibration.py --stage refit` finds it

Usage: python benchmarks/observations.py save|restore --work DIR [--runtimes litert,onnxruntime]
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tightfit_service.adapters.calibration.designed_networks import CYCLE, DesignedNetworks
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.application.costs.costing import BITS
from tightfit_service.application.hardware.calibration import MOST_NETWORK_COUNT
from tightfit_service.application.plain import from_plain, to_plain
from tightfit_service.application.work.calibration import DESIGN
from tightfit_service.domain.calibration import Calibration, Observation
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.measurement import OperatorTime
from tightfit_service.domain.network import NetworkProfile
from tightfit_service.graph.profile import OnnxGraphInspector

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.calibration import (  # needs the path above
    restore_calibration,
    stored_calibration,
    target_name,
)

FOLDER = Path(__file__).parent / "results" / "observations"
DIGITS = 6
"""Of milliseconds: nanoseconds. Measurements repeat within a hundredth, and least operators take microseconds."""


def places(labels: Sequence[str], all_labels: Sequence[str]) -> list[int]:
    """Return which networks of the designed set those of one number format are, some being absent.

    Raises:
        ValueError: They are not those of the set, in its order.
    """
    found: list[int] = []
    place = 0
    for label in labels:
        while place < len(all_labels) and all_labels[place] != label:
            place += 1
        found.append(place)
        place += 1
    if place > len(all_labels):
        raise ValueError("the networks are not those of the designed set, in its order")
    return found


def written(calibration: Calibration) -> dict[str, Any]:
    """Return what a calibration measured as plain data; kinds of operators are told once."""
    kinds: dict[str, int] = {}
    formats: dict[str, Any] = {}
    all_labels = designed_labels(MOST_NETWORK_COUNT)
    for number_format in dict.fromkeys(item.number_format for item in calibration.observations):
        own = [item for item in calibration.observations if item.number_format is number_format]
        formats[str(number_format)] = {
            "networks": places([item.label for item in own], all_labels),
            "latencies_ms": [round(item.latency_ms, DIGITS) for item in own],
            "digests": [item.file_digest for item in own],
            "operators": [
                [
                    (
                        kinds.setdefault(part.kind, len(kinds)),
                        round(part.latency_ms, DIGITS),
                        part.output_elements,
                    )
                    for part in item.operators
                ]
                for item in own
            ],
        }
    without = replace(calibration, observations=(), quality=(), learned=())
    return {
        "design": DESIGN,
        "calibration": to_plain(without),
        "kinds": list(kinds),
        "formats": formats,
    }


def read(found: dict[str, Any]) -> Calibration:
    """Return the calibration that `written` made data of, without the fit.

    Raises:
        ValueError: It is of another version of the designed set.
    """
    if found["design"] != DESIGN:
        raise ValueError(
            f"measured of version {found['design']} of the designed set, which is at {DESIGN} now"
        )
    observations = [
        (network, item)
        for name, own in found["formats"].items()
        for network, item in _observations(NumberFormat(name), own, found["kinds"])
    ]
    # all formats of a network stand together, as they were measured
    observations.sort(key=lambda pair: pair[0])
    empty = from_plain(Calibration, found["calibration"])
    return replace(empty, observations=tuple(item for _, item in observations))


def designed_labels(count: int) -> list[str]:
    """Return the labels of the first networks of the designed set."""
    return [CYCLE[place % len(CYCLE)] for place in range(count)]


@cache
def designed_profile(place: int) -> NetworkProfile:
    """Return the work of a network of the designed set."""
    model = OnnxImporter().import_model(DesignedNetworks().graph(place).graph)
    return OnnxGraphInspector().profile(model.graph)


def _observations(
    number_format: NumberFormat, found: dict[str, Any], kinds: Sequence[str]
) -> Iterator[tuple[int, Observation]]:
    weight_bits, activation_bits = BITS[number_format]
    labels = designed_labels(max(found["networks"]) + 1)
    for place, latency_ms, digest, operators in zip(
        found["networks"],
        found["latencies_ms"],
        found["digests"],
        found["operators"],
        strict=True,
    ):
        profile = designed_profile(place).at_precision(
            weight_bits=weight_bits, activation_bits=activation_bits
        )
        yield (
            place,
            Observation(
                label=labels[place],
                number_format=number_format,
                profile=profile,
                latency_ms=latency_ms,
                operators=tuple(
                    OperatorTime(kind=kinds[kind], latency_ms=own_ms, output_elements=elements)
                    for kind, own_ms, elements in operators
                ),
                file_digest=digest,
            ),
        )


def file_of(runtime: str) -> Path:
    """Return where the measurements with a runtime are."""
    return FOLDER / f"{runtime}.json.gz"


def save(runtime: str, work: Path) -> None:
    """Write what a work folder's server has measured with a runtime."""
    with stored_calibration(target_name(runtime), work) as (_, calibration, _):
        data = json.dumps(written(calibration), separators=(",", ":")).encode()
    FOLDER.mkdir(exist_ok=True)
    # the same measurements make the same file
    file_of(runtime).write_bytes(gzip.compress(data, mtime=0))
    print(f"{len(calibration.observations)} measurements in {file_of(runtime)}")


def restore(runtime: str, work: Path) -> None:
    """Put what was written into a work folder's server, which fits when it is first asked."""
    calibration = read(json.loads(gzip.decompress(file_of(runtime).read_bytes())))
    restore_calibration(runtime, calibration, work)
    print(f"{len(calibration.observations)} measurements in {work}")


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runtimes", default="litert,onnxruntime")
    arguments = parser.parse_args()
    for runtime in arguments.runtimes.split(","):
        {"save": save, "restore": restore}[arguments.what](runtime, arguments.work.resolve())


if __name__ == "__main__":
    main()
