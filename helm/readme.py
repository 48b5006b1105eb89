"""Writes the table of values in the chart's README from the comments in values.yaml.

    python helm/readme.py [--check]

A comment that starts with `# --` describes the key below it; `--check` fails where the README differs.
"""

# ruff: noqa: INP001  (a script beside the chart, not a package)
from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "tightfit"
HEADING = "## Values\n"
LONGEST_DEFAULT = 60


def described(text: str) -> Iterator[tuple[str, str]]:
    """Yield (path, comment) of every value in the text of a values.yaml that a comment describes."""
    stack: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        if line.strip().startswith("# -- "):
            comment = line.strip().removeprefix("# -- ")
            continue
        match = re.match(r"^( *)([A-Za-z0-9]+):", line)
        if match is None:
            continue
        indent = len(match[1])
        stack = [entry for entry in stack if entry[0] < indent] + [(indent, match[2])]
        if comment:
            yield ".".join(name for _, name in stack), comment
            comment = ""


def table(text: str) -> str:
    """Return the table of values as Markdown."""
    values = yaml.safe_load(text)
    rows = ["| key | default | what |", "|---|---|---|"]
    for path, comment in described(text):
        default = json.dumps(_value_at(values, path))
        shown = f"`{default}`" if len(default) <= LONGEST_DEFAULT else "see values.yaml"
        rows.append(f"| `{path}` | {shown} | {comment} |")
    return "\n".join(rows) + "\n"


def _value_at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def generated(readme: str, values: str) -> str:
    """Return the README with its table, which is its last section, from the text of values.yaml."""
    head, heading, _ = readme.partition(HEADING)
    return f"{head}{heading}\n{table(values)}"


def main() -> int:
    """Write or check the README; return 1 where it differs under --check."""
    parser = argparse.ArgumentParser(description="Write the chart's README from its values.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    check = parser.parse_args().check
    path = CHART / "README.md"
    wanted = generated(path.read_text(), (CHART / "values.yaml").read_text())
    if check:
        return int(path.read_text() != wanted)
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
