"""Targets, emulators, and what is installed here."""

from __future__ import annotations

import contextlib
from importlib import metadata, util

from tightfit_service.adapters.emulators.edge_tpu import EDGE_TPU_EMULATOR
from tightfit_service.adapters.emulators.esp import EspEmulator
from tightfit_service.adapters.emulators.ethos_u import ETHOS_U_EMULATOR
from tightfit_service.adapters.emulators.gpu import GPU_EMULATOR
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.npu import HEXAGON_EMULATOR, NPU_EMULATOR
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.application.ports import (
    Emulator,
    TargetCatalogue,
)
from tightfit_service.domain.hardware import ModelFormat

REPORTED_PACKAGES = (
    "tightfit-service",
    "torch",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "openvino",
    "executorch",
    "ethos-u-vela",
    "tflite-micro",
    "scipy",
    "numpy",
)


EXTRAS = {
    ModelFormat.OPENVINO: ("openvino", "openvino"),
    ModelFormat.EXECUTORCH: ("executorch", "executorch"),
    ModelFormat.VELA: ("ethos-u", "ethosu"),
}
"""Output formats that need an extra of this distribution: its name, and the package that it brings."""


def missing_extras() -> dict[ModelFormat, str]:
    """Return the output formats whose libraries are not installed, and the extras that bring them."""
    return {
        model_format: f"tightfit-service[{extra}]"
        for model_format, (extra, package) in EXTRAS.items()
        if util.find_spec(package) is None
    }


def tool_versions() -> dict[str, str]:
    """Return the versions of what computes results, for recipes."""
    versions = {}
    for package in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def catalogue() -> TargetCatalogue:
    """Return the hardware targets that come with the service."""
    return YamlTargetCatalogue()


def emulators() -> tuple[Emulator, ...]:
    """Return the emulators, the most specific first."""
    return (
        McuEmulator(),
        EspEmulator(),
        ETHOS_U_EMULATOR,
        EDGE_TPU_EMULATOR,
        NPU_EMULATOR,
        HEXAGON_EMULATOR,
        GPU_EMULATOR,
        RooflineEmulator(),
    )
