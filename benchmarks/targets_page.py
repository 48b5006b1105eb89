"""Writes the catalogue of hardware targets into docs/targets.md.

`--check` changes nothing and ends with 1 where the page differs from the catalogue.

Usage: python benchmarks/targets_page.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tightfit_service import bootstrap
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.costs.costing import select_emulator
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.domain.hardware import FIGURES, AcceleratorKind, HardwareSpec
from tightfit_service.domain.network import OperatorKind

PAGE = Path(__file__).parents[1] / "docs" / "targets.md"


def page(text: str) -> str:
    """Return the text of the page with all that stands between markers made anew."""
    catalogue = YamlTargetCatalogue()
    parts = {
        "figures": f"\n{figures()}\n",
        "operators": codes([kind.value for kind in OperatorKind]),
        "cores": codes(catalogue.cores),
        "accelerators": codes([kind.value for kind in AcceleratorKind]),
        "catalogue": f"\n{targets(catalogue.list())}\n",
    }
    for name, content in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        head, _, rest = text.partition(begin)
        tail = rest.partition(end)[2]
        text = f"{head}{begin}{content}{end}{tail}"
    return text


def codes(words: Sequence[str]) -> str:
    """Return the words as code, separated by commas."""
    return ", ".join(f"`{word}`" for word in words)


def figures() -> str:
    """Return the table of all figures with what is possible."""
    rows = [f"| `{path}` | {range_} |" for path, range_ in FIGURES.items()]
    return "\n".join(["| figure | range |", "|---|---|", *rows])


def targets(specs: Sequence[HardwareSpec]) -> str:
    """Return the tables of the targets: microcontrollers, then larger ones; accelerated ones apart."""
    boards = {spec.display_name.partition(",")[0] for spec in specs}
    lines = [f"{len(specs)} targets on {len(boards)} devices."]
    for title, is_small, is_accelerated in (
        ("Microcontrollers", True, False),
        ("Microcontrollers with accelerators", True, True),
        ("Linux devices and PCs", False, False),
        ("Linux devices with accelerators", False, True),
    ):
        chosen = [
            spec
            for spec in specs
            if _is_microcontroller(spec) is is_small
            and (spec.accelerator is not None) is is_accelerated
        ]
        lines += ["", f"### {title}", "", *table(chosen)]
    return "\n".join(lines)


def table(specs: Sequence[HardwareSpec]) -> list[str]:
    """Return the lines of a table of targets."""
    accelerated = any(spec.accelerator for spec in specs)
    heads = ["target", "device", "core", *(["accelerator"] if accelerated else [])]
    heads += ["RAM", "flash", "formats", "runtime", "emulator", "assumed"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for spec in specs:
        cells = [f"`{spec.name}`", spec.display_name, _core(spec)]
        if accelerated:
            cells.append(_accelerator(spec))
        cells += [
            _size(spec.memory.ram_bytes),
            _size(spec.memory.flash_bytes),
            ", ".join(spec.number_formats),
            f"{spec.runtime.name} {spec.runtime.version}".strip(),
            _emulator(spec),
            ", ".join(spec.assumed_fields),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _is_microcontroller(spec: HardwareSpec) -> bool:
    return spec.core.startswith(("cortex-m", "xtensa", "riscv32"))


def _core(spec: HardwareSpec) -> str:
    count = f"{spec.core_count} x " if spec.core_count > 1 else ""
    return f"{count}{spec.core}, {spec.clock_mhz:g} MHz"


def _accelerator(spec: HardwareSpec) -> str:
    if spec.accelerator is None:
        return ""
    rates = ", ".join(
        f"{2 * spec.accelerator.macs_per_second(number_format) / 1e12:.3g} TOPS {number_format}"
        for number_format in spec.accelerator.number_formats
    )
    return f"{spec.accelerator.name} ({rates})"


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count / 1024:.4g} KiB"


def _emulator(spec: HardwareSpec) -> str:
    try:
        return select_emulator(bootstrap.emulators(), spec).name
    except UnsupportedError:
        return "none yet"


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = page(old)
    if is_check and new != old:
        print(
            f"{PAGE} differs from the catalogue: run python benchmarks/targets_page.py",
            file=sys.stderr,
        )
        return 1
    if not is_check:
        PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
