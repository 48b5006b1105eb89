"""Writes the figures of the benchmarks into the README and docs/benchmarks.md.

The scripts beside this one store what they measured in `benchmarks/results/*.json`; nothing is typed in
by hand. `--check` changes nothing and ends with 1 where a page differs from the results.

Usage: python benchmarks/publish.py [--check]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
UNMEASURED = "Not measured yet."


def between(text: str, name: str, content: str, *, inline: bool = False) -> str:
    """Return the text with what stands between the markers of that name replaced.

    The content gets lines of its own unless it stands inside a sentence.

    Raises:
        ValueError: The markers are not there.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, found, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"no markers for {name}")
    edge = "" if inline else "\n"
    return f"{head}{begin}{edge}{content}{edge}{end}{tail}"


def main_job(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the main job."""
    lines = [
        "| network | model | top-1 of the exported file | 95 % interval | estimated latency (at most) | MACs | file | job |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        job = f"{row['seconds'] / 60:.1f} min" if row["seconds"] else ""
        lines.append(
            f"| {row['network']} | {row['what']} | {row['accuracy']:.2%} | "
            f"{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%} | "
            f"{row['latency_ms']:.1f} ms ({row['latency_high_ms']:.1f}) | "
            f"{row['macs'] / 1e6:.1f} M | {row['file_bytes'] / 1024:.0f} KiB | {job} |"
        )
    return "\n".join(lines)


def verdicts(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line per network on what the main job reached."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        by_what = {row["what"]: row for row in rows if row["network"] == network}
        ours = by_what.get("tightfit")
        before = by_what["as it came (float32)"]
        limit = by_what["int8 only"]["latency_ms"] / 2
        if ours is None:
            lines.append(f"- {network}: nothing met {limit:.1f} ms.")
            continue
        lost = 100 * (before["accuracy"] - ours["accuracy"])
        line = (
            f"- {network}: at most {ours['latency_high_ms']:.1f} ms of the {limit:.1f} ms allowed, "
            f"{lost:.2f} points lost"
        )
        uniform = by_what.get("uniform pruning, same training time")
        if uniform is not None:
            line += f"; uniform pruning lost {100 * (before['accuracy'] - uniform['accuracy']):.2f}"
        lines.append(line + ".")
    return "\n".join(lines)


def upload(rounds: Sequence[dict[str, float]]) -> str:
    """Return the table of the upload benchmark."""

    def median(key: str) -> float:
        return float(statistics.median(r[key] for r in rounds))

    lines = ["| 200 MB over loopback | seconds | against the bare stream |", "|---|---|---|"]
    for key, what in (
        ("bare_s", "bare gRPC stream"),
        ("sent_s", "tightfit, until all bytes were taken"),
        ("whole_s", "tightfit, until stored, checked and recorded"),
    ):
        ratio = statistics.median(r["bare_s"] / r[key] for r in rounds)
        lines.append(f"| {what} | {median(key):.2f} | {ratio:.0%} |")
    growth = max(r["memory_growth_bytes"] for r in rounds)
    lines.append("")
    lines.append(f"The server's memory grew by at most {growth / 1e6:.0f} MB meanwhile.")
    return "\n".join(lines)


def packing_stages(result: dict[str, Any]) -> str:
    """Return the table of Deep Compression's stages."""
    lines = [
        "| stage | weights not zero | file | gzip | xz | packed | smaller | top-1, unpacked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["stages"]:
        sizes = (
            f"{row[f'{kind}_bytes'] / 1000:.1f} kB" for kind in ("file", "gzip", "xz", "packed")
        )
        lines.append(
            f"| {row['stage']} | {row['weights_not_zero'] / row['weights']:.1%} | "
            f"{' | '.join(sizes)} | {row['times_smaller']:.1f} x | {row['test_accuracy']:.2%} |"
        )
    return "\n".join(lines)


def download_levels(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of choices by layer against the same for all layers."""
    lines = [
        "| network | packed, at most | same for all layers | top-1 | by layer | top-1 |",
        "|---|---|---|---|---|---|",
    ]
    for same, own in zip(rows[::2], rows[1::2], strict=True):
        assert not same["by_layer"]
        assert own["by_layer"]
        figures = (
            f"{row['packed_bytes'] / 1000:.1f} kB | {row['accuracy']:.2%}" for row in (same, own)
        )
        lines.append(f"| {same['network']} | {same['share']:.0%} | {' | '.join(figures)} |")
    whole = {
        row["network"]: f"{row['network']} as it is: {row['whole_bytes'] / 1000:.1f} kB, "
        f"{row['whole_accuracy']:.2%}"
        for row in rows
    }
    return "\n".join([*lines, "", "; ".join(whole.values()) + "."])


def packing_files(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of packed files."""
    lines = [
        "| file | size | gzip | xz | packed | unpacked in (CPU) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = (
            f"{row[f'{kind}_bytes'] / 1000:.1f} kB" for kind in ("file", "gzip", "xz", "packed")
        )
        lines.append(f"| {row['file']} | {' | '.join(sizes)} | {row['unpack_cpu_seconds']:.2f} s |")
    return "\n".join(lines)


def techniques(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of techniques by themselves."""
    lines = [
        "| network | technique | strength | latency | MACs | weights | packed | top-1 | 95 % interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    whole: dict[str, dict[str, Any]] = {}
    for row in rows:
        first = whole.setdefault(row["network"], row)
        size = row.get("packed_bytes")
        packed = "" if size is None else f"{size / first['packed_bytes']:.0%}"
        lines.append(
            f"| {row['network']} | {row['technique'].replace('_', ' ')} | {_short(row['what'])} | "
            f"{row['latency_ratio']:.0%} | {row['macs'] / first['macs']:.0%} | "
            f"{row['weight_count'] / first['weight_count']:.0%} | {packed} | {row['accuracy']:.1%} | "
            f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%} |"
        )
    return "\n".join(lines)


def _short(text: str) -> str:
    """Return a text whose long names are cut to their ends."""
    words = (f"…{word[-24:]}" if len(word) > 40 else word for word in text.split())
    return " ".join(words)


def number_formats(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of number formats."""
    lines = [
        "| network | format | file | top-1 | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        measured = (
            f"{row['file_bytes'] / 1000:.0f} kB | {row['accuracy']:.1%} | "
            f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}"
        )
        refused = f"refused: {row['refused']} | | "
        lines.append(
            f"| {row['network']} | {row['what']} | {refused if row['refused'] else measured} |"
        )
    return "\n".join(lines)


def training_back(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of what parts of training are worth."""
    lines = [
        "| network | what was done to it | trained | epochs | top-1 | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        measured = (
            f"{row['epochs']:.1f} | {row['accuracy']:.2%} | "
            f"{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%}"
        )
        refused = f" | refused: {row['refused']} | "
        lines.append(
            f"| {row['network']} | {row['what']} | {row['training']} | "
            f"{refused if row['refused'] else measured} |"
        )
    return "\n".join(lines)


def shares_of_macs(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of what is left of accuracy at a share of the work."""
    lines = [
        "| network | techniques | MACs | epochs | top-1 before | top-1 after | 95 % interval | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {row['network']} | {row['techniques'].replace('_', ' ')} | {row['macs_share']:.0%} | "
        f"{row['epochs']:.1f} | {row['before']:.2%} | {row['accuracy']:.2%} | "
        f"{row['accuracy_low']:.2%} to {row['accuracy_high']:.2%} | {row['seconds'] / 60:.1f} min |"
        for row in rows
    )
    return "\n".join(lines)


def calibrations(found: dict[str, Any]) -> str:
    """Return the table of calibrated runtimes."""
    lines = [
        "| runtime | unseen networks | within 10 % | median error | p90 | in interval | before | repeated: within 10 % | its median | single rounds within 10 % | their medians within 10 % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for runtime in ("litert", "onnxruntime"):
        if runtime not in found:
            continue
        for key, whose in (("scores", "all"), ("scores_of_known_operators", "known operators")):
            score = found[runtime][key]
            lines.append(
                f"| {found[runtime]['calibration']['runtime']} | {score['networks']}, {whose} | "
                f"{score['within_10_percent']:.0%} | {score['median']:.1%} | {score['p90']:.1%} | "
                f"{score['coverage']:.0%} | {score['median_before']:.0%} | "
                f"{score['repeated_within_10_percent']:.0%} | {score['repeated_median']:.1%} | "
                f"{score['repeated_singles_within_10_percent']:.0%} | "
                f"{score['repeated_medians_within_10_percent']:.0%} |"
            )
    devices = [
        f"- {own['calibration']['runtime']}: version {own['design']} of the designed set, on {own['device']}"
        for _, own in sorted(found.items())
    ]
    parts = (lines, devices, by_networks_measured(found), tiles_found(found))
    return "\n\n".join("\n".join(part) for part in parts)


def by_networks_measured(found: dict[str, Any]) -> list[str]:
    """Return the table of what fits to the first networks of the designed set say of the unseen ones."""
    lines = [
        "| runtime | networks measured | unseen: within 10 % | median error | p90 | in interval |",
        "|---|---|---|---|---|---|",
    ]
    for runtime in sorted(found):
        calibration = found[runtime]["calibration"]
        measured = sum(item["networks"] for item in calibration["left_out"].values())
        rows = [
            *(
                (f"{score['networks_per_format']} per number format", score)
                for score in found[runtime].get("by_networks_per_format", ())
            ),
            (f"{measured}, all", found[runtime]["scores"]),
        ]
        lines += [
            f"| {calibration['runtime']} | {which} | {score['within_10_percent']:.0%} | "
            f"{score['median']:.1%} | {score['p90']:.1%} | {score['coverage']:.0%} |"
            for which, score in rows
        ]
    return lines


def tiles_found(found: dict[str, Any]) -> list[str]:
    """Return the table of the tiles of kernels that calibrations found, those of the most kinds as one row."""
    lines = [
        "| runtime | activations | product | rows | columns | narrow kernel | depth |",
        "|---|---|---|---|---|---|---|",
    ]
    for runtime in sorted(found):
        for bits, tiles in found[runtime].get("tiles", {}).items():
            usual = Counter(map(tuple, tiles.values())).most_common(1)[0][0]
            own = {name: tuple(tile) for name, tile in tiles.items() if tuple(tile) != usual}
            lines += [
                f"| {found[runtime]['calibration']['runtime']} | {bits} bits | {name} | "
                f"{' | '.join(map(str, tile))} |"
                for name, tile in [*own.items(), ("all others", usual)]
            ]
    return lines


def install_size(result: dict[str, Any]) -> str:
    """Return how much an installation takes."""
    return f"{result['bytes'] / 1e9:.1f} GB"


def pages() -> dict[Path, str]:
    """Return the pages as the results would have them."""
    rows = [
        row
        for network in ("resnet20", "resnet8")
        if (file := RESULTS / f"main_job_{network}.json").exists()
        for row in json.loads(file.read_text())
    ]
    readme, document = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
    text = document.read_text()
    text = between(text, "main-job", main_job(rows) + "\n\n" + verdicts(rows))
    rounds = json.loads((RESULTS / "upload.json").read_text())
    text = between(text, "upload", upload(rounds))
    packing = json.loads((RESULTS / "packing.json").read_text())
    packed = ROOT / "docs" / "packed-format.md"
    stages = between(packed.read_text(), "packing-stages", packing_stages(packing["lenet"]))
    macs = RESULTS / "macs_target.json"
    if macs.exists():
        text = between(text, "macs-target", shares_of_macs(json.loads(macs.read_text())))
    methods = ROOT / "docs" / "techniques.md"
    alone = json.loads((RESULTS / "techniques.json").read_text())
    formats = json.loads((RESULTS / "quantization.json").read_text())
    shown = between(methods.read_text(), "techniques", techniques(alone))
    levels = json.loads((RESULTS / "download_levels.json").read_text())
    shown = between(shown, "download-levels", download_levels(levels))
    trained = RESULTS / "training_back.json"
    table = training_back(json.loads(trained.read_text())) if trained.exists() else UNMEASURED
    shown = between(shown, "training-back", table)
    devices = RESULTS / "calibration.json"
    emulators = ROOT / "docs" / "emulators.md"
    table = calibrations(json.loads(devices.read_text())) if devices.exists() else UNMEASURED
    first = between(readme.read_text(), "main-job", main_job(rows))
    installed = RESULTS / "install_size.json"
    if installed.exists():
        size = install_size(json.loads(installed.read_text()))
        first = between(first, "install-size", size, inline=True)
    return {
        emulators: between(emulators.read_text(), "calibration", table),
        methods: between(shown, "formats", number_formats(formats["files"])),
        packed: between(stages, "packing-files", packing_files(packing["files"])),
        readme: first,
        document: text,
    }


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = [path for path, text in pages().items() if path.read_text() != text]
    if arguments.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} differs from benchmarks/results", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
