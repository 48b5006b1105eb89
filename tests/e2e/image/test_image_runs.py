"""The image is built, started without rights and with a read-only root, and compresses the digits model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.image.built_image import USER, BuiltImage, Serving, processes_below, user_of
from tightfit.cli import exit_codes

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "examples" / "digits"
MOUNTED = ("tmp", "var/lib/tightfit", "proc", "sys", "dev", "run")
WRITTEN_BY_BUILDAH = {"etc/hosts", "etc/hostname", "etc/resolv.conf"}

pytestmark = [
    pytest.mark.debian,
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("buildah") and shutil.which("debootstrap")),
        reason="needs root, buildah and debootstrap: apt-get install buildah debootstrap",
    ),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImage]:
    """Build the image; TIGHTFIT_IMAGE_STORE names a folder whose image is taken as it is, and is kept."""
    kept = os.environ.get("TIGHTFIT_IMAGE_STORE")
    store = Path(kept) if kept else tmp_path_factory.mktemp("image")
    command = [
        str(Path(__file__).with_name("build")),
        str(store),
        *(["--if-missing"] if kept else []),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout.splitlines()[-1])
    print(built)
    image = BuiltImage(
        store=store,
        name=built["image"],
        build_seconds=built["build_seconds"],
        size_bytes=built["bytes"],
    )
    yield image
    if not kept:
        # Layers belong to other users and are overlays: only buildah removes them whole.
        image.answer("rm", "--all")
        image.answer("rmi", "--all", "--force")
        shutil.rmtree(store, ignore_errors=True)


def compress(serving: Serving, output: Path, seconds: int) -> dict[str, object]:
    """Run the command of examples/digits/demo.sh against a server; return its result."""
    done = subprocess.run(
        [
            Path(sys.executable).with_name("tightfit"),
            "compress",
            DIGITS / "digits.onnx",
            f"--data={DIGITS / 'dataset.yaml'}",
            "--target=nucleo-h7a3zi-q",
            "--max-latency=3.5ms",
            "--max-ram=16KiB",
            "--max-accuracy-drop=0.02",
            f"--max-time={seconds}s",
            f"--server={serving.address}",
            f"--output={output}",
        ],
        check=False,
        timeout=900,
    )
    assert done.returncode in (exit_codes.OK, exit_codes.BUDGET_NOT_MET)
    result = json.loads((output / "result.json").read_text())
    assert isinstance(result, dict)
    return result


def test_the_image_says_what_it_is_and_how_it_runs(image: BuiltImage) -> None:
    config = image.config()
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["python", "-m", "tightfit_service"]
    assert config["Cmd"] == ["serve"]
    assert set(config["ExposedPorts"]) == {"50051/tcp", "9464/tcp"}
    assert set(config["Volumes"]) == {"/var/lib/tightfit"}
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert len(labels["org.opencontainers.image.revision"]) == 40


def test_the_image_holds_its_list_of_parts_and_no_tools_of_the_build(image: BuiltImage) -> None:
    with image.container() as container:
        label = image.config()["Labels"]["io.tightfit.sbom"]
        sbom = json.loads((container.root / label.lstrip("/")).read_text())
        parts = {part["name"]: part["version"] for part in sbom["components"]}
        assert sbom["bomFormat"] == "CycloneDX"
        assert parts["torch"].startswith("2.13.0")
        assert {"tightfit", "tightfit-service", "onnxruntime", "psycopg"} <= set(parts)
        assert "cyclonedx-bom" not in parts
        assert container.run("python", "-m", "pip", "--version").returncode != 0
        assert container.run("sh", "-c", "command -v gcc").returncode != 0
        assert not (container.root / "etc" / "pip.conf").exists()
        assert not (container.root / "build").exists()


def test_the_user_has_no_rights(image: BuiltImage) -> None:
    with image.container() as container:
        assert container.run("id", "-u").stdout.strip() == str(USER)
        for place in ("/opt/tightfit/x", "/etc/x", "/usr/x", "/x"):
            assert container.run("touch", place).returncode != 0, place
        privileged = container.run(
            "find", "/opt", "/usr", "-xdev", "-writable", "-not", "-type", "l"
        )
        assert privileged.stdout == ""


def test_the_main_job_runs_in_a_container(image: BuiltImage, tmp_path: Path) -> None:
    with image.container() as container:
        marker = tmp_path / "marker"
        marker.touch()
        with container.serving(tmp_path / "served") as serving:
            result = compress(serving, tmp_path / "result", seconds=120)
            check = image.config()["Healthcheck"]["Test"][1:]
            environment = {"TIGHTFIT_HEALTH_LISTEN": serving.health_address}
            asked = container.run(*check, environment=environment)
            assert asked.returncode == 0, asked.stderr
        assert serving.exit_code == 0, serving.log()
        assert container.run(*check, environment=environment).returncode != 0
        assert result["state"] == "SUCCEEDED"
        assert (tmp_path / "result" / "report.html").stat().st_size > 10_000
        written = changed_files(container.root, marker)
        print(f"started in {serving.start_seconds:.1f} s; written outside the volumes: {written}")
        assert written <= WRITTEN_BY_BUILDAH
    owners = {path.stat().st_uid for path in serving.data.rglob("*")}
    assert owners == {USER}


def test_the_main_job_runs_with_a_read_only_root(image: BuiltImage, tmp_path: Path) -> None:
    with image.container() as container:
        with container.serving_read_only(tmp_path / "served") as serving:
            mine = processes_below(os.getpid())
            servers = [
                pid
                for pid in mine
                if b"tightfit_service\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
                and user_of(pid) == USER
            ]
            assert servers, "no process of the server's user"
            for pid in servers:
                for place in ("opt/tightfit/x", "etc/x", "x"):
                    with pytest.raises(OSError, match="Read-only file system"):
                        Path(f"/proc/{pid}/root/{place}").touch()
            result = compress(serving, tmp_path / "result", seconds=20)
        assert serving.exit_code == 0, serving.log()
    assert result["state"] in ("SUCCEEDED", "INFEASIBLE")
    assert {path.stat().st_uid for path in serving.data.rglob("*")} == {USER}


def changed_files(root: Path, marker: Path) -> set[str]:
    """Return the files of a container that are newer than the marker, outside of what is mounted."""
    pruned = [word for place in MOUNTED for word in ("-path", f"./{place}", "-prune", "-o")]
    found = subprocess.run(
        ["find", ".", "-xdev", *pruned, "-newer", marker, "-type", "f", "-print"],
        check=True,
        cwd=root,
        capture_output=True,
        text=True,
    )
    return {line.removeprefix("./") for line in found.stdout.splitlines()}
