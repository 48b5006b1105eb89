"""Generates the client's stubs and the runner's descriptors from the contract, or checks that they are up to date."""
# ruff: noqa: INP001, T201  (a script beside the protos, which reports on stdout)

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
STUBS = PROTOS.parent / "clients" / "python"
PACKAGE = Path("tightfit/v1")
RUNNER_PROTOS = ("runner.proto", "artifact.proto")
RUNNER_DESCRIPTORS = PROTOS.parent / "clients" / "runner" / "tightfit_runner" / "contract.binpb"
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(destination: Path) -> None:
    """Write the stubs of all protos below `destination`.

    Raises:
        RuntimeError: protoc refused the protos; it has said why on stderr.
    """
    # Only the drift check and developers need these; `pip install 'tightfit-service[dev]'` brings them.
    from grpc_tools import protoc

    sources = sorted((PROTOS / PACKAGE).glob("*.proto"))
    services = [s for s in sources if re.search(r"^service ", s.read_text("utf-8"), re.MULTILINE)]
    scripts = Path(sys.executable).parent
    well_known = Path(protoc.__file__).parent / "_proto"
    include = [f"-I{PROTOS}", f"-I{PROTOS / 'third_party'}", f"-I{well_known}"]
    outputs = (
        (sources, [f"--python_out={destination}"]),
        (
            sources,
            [
                f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
                f"--mypy_out=quiet:{destination}",
            ],
        ),
        (services, [f"--grpc_python_out={destination}"]),
        (
            services,
            [
                f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
                f"--mypy_grpc_out=quiet:{destination}",
            ],
        ),
    )
    for files, options in outputs:
        if protoc.main(["protoc", *include, *options, *map(str, files)]) != 0:
            raise RuntimeError("protoc failed")


def runner_descriptors() -> bytes:
    """Return what the runner speaks, as a serialized FileDescriptorSet with all that it imports.

    Raises:
        RuntimeError: protoc refused the protos; it has said why on stderr.
    """
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / RUNNER_DESCRIPTORS.name
        command = [
            "protoc",
            f"-I{PROTOS}",
            f"-I{PROTOS / 'third_party'}",
            f"-I{Path(protoc.__file__).parent / '_proto'}",
            "--include_imports",
            f"--descriptor_set_out={output}",
            *(str(PROTOS / PACKAGE / name) for name in RUNNER_PROTOS),
        ]
        if protoc.main(command) != 0:
            raise RuntimeError("protoc failed")
        return output.read_bytes()


def drift(fresh: Path, committed: Path) -> list[str]:
    """Return the names of the stubs that differ, are missing or are left over, sorted."""
    names = {
        path.name
        for folder in (fresh, committed)
        for pattern in PATTERNS
        for path in folder.glob(pattern)
    }
    return sorted(name for name in names if _text(fresh / name) != _text(committed / name))


def _text(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def main() -> int:
    """Generate, or with `--check` compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 and list the stubs that differ"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = Path(folder) / PACKAGE, STUBS / PACKAGE
        changed = drift(fresh, committed)
        descriptors = runner_descriptors()
        known = RUNNER_DESCRIPTORS.read_bytes() if RUNNER_DESCRIPTORS.exists() else b""
        if arguments.check:
            names = [str(PACKAGE / name) for name in changed]
            names += [RUNNER_DESCRIPTORS.name] if descriptors != known else []
            for name in names:
                print(f"{name} is not what protos/ gives: run `make protos`")
            return 1 if names else 0
        if descriptors != known:
            RUNNER_DESCRIPTORS.write_bytes(descriptors)
            print(f"wrote {RUNNER_DESCRIPTORS.name}")
        for name in changed:
            target = committed / name
            if (fresh / name).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes((fresh / name).read_bytes())
            else:
                target.unlink()
            print(f"wrote {PACKAGE / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
