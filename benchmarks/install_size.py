"""Measures what an installation of the service takes on the disk, without its extras.

Sums up the files of `tightfit-service` and of all distributions that it needs, as pip recorded them in the
environment that runs this; what else is installed there does not count.

Usage: python benchmarks/install_size.py [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RESULT = Path(__file__).parent / "results" / "install_size.json"


def needed_by(name: str) -> dict[str, Distribution]:
    """Return a distribution and all that it needs, by name.

    Raises:
        importlib.metadata.PackageNotFoundError: One of them is not installed.
    """
    found: dict[str, Distribution] = {}
    wanted = [(name, frozenset[str]())]
    seen = set(wanted)
    while wanted:
        key, extras = wanted.pop()
        found[key] = distribution(key)
        for need in _needs(found[key], extras):
            if need not in seen:
                seen.add(need)
                wanted.append(need)
    return found


def _needs(found: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in found.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def size_of(found: Distribution) -> int:
    """Return the bytes of a distribution's files that are there."""
    paths = (Path(str(found.locate_file(file))) for file in found.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    sizes = {name: size_of(found) for name, found in needed_by("tightfit-service").items()}
    result = {
        "bytes": sum(sizes.values()),
        "distributions": len(sizes),
        "torch": distribution("torch").version,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:10]:
        print(f"{size / 1e6:8.0f} MB  {name}")


if __name__ == "__main__":
    main()
