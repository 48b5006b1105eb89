"""Prints what distributions of this repository need, for the layer of the image before their source.

    python dependencies.py SERVICE_PYPROJECT CLIENT_PYPROJECT --extras "postgres ray"

Left out are the distributions themselves and torch, which is installed from an index of its own.
"""
# ruff: noqa: INP001, T201  (a script of the image's build)

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path


def needed(projects: list[dict[str, object]], extras: list[str]) -> list[str]:
    """Return the requirements of `[project]` tables, with those of the extras that they have.

    Raises:
        SystemExit: No project has an extra of that name.
    """
    lines: list[str] = []
    unknown = set(extras)
    names = {str(project["name"]) for project in projects} | {"torch"}
    for project in projects:
        lines += project.get("dependencies", [])  # type: ignore[arg-type]  # TOML has no types
        optional: dict[str, list[str]] = project.get("optional-dependencies", {})  # type: ignore[assignment]
        for extra in extras:
            if extra in optional:
                unknown.discard(extra)
                lines += optional[extra]
    if unknown:
        raise SystemExit(f"no extra of this name: {', '.join(sorted(unknown))}")
    return [line for line in lines if re.split(r"[\[<>=~! ;]", line)[0] not in names]


def main() -> None:
    """Print the requirements."""
    parser = argparse.ArgumentParser(description="Print what the image installs.")
    parser.add_argument("projects", nargs="+", type=Path, help="pyproject.toml files")
    parser.add_argument("--extras", default="", help="names of extras, with spaces between")
    arguments = parser.parse_args()
    projects = [tomllib.loads(path.read_text())["project"] for path in arguments.projects]
    print(*needed(projects, arguments.extras.split()), sep="\n")


if __name__ == "__main__":
    main()
