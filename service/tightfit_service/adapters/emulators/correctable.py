"""Which form of an emulator measurements correct."""

from __future__ import annotations

from tightfit_service.adapters.emulators.accelerated import AcceleratedEmulator
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.application.ports import Emulator


def correctable(emulator: Emulator) -> Emulator:
    """Return the form of an emulator that a calibration starts from: itself, or one without steps.

    A Gaussian process corrects smoothly what it starts from. A step that the device has elsewhere, such as where
    a cache ends, would be left for it to undo, while one that is left out is learned where it is.
    """
    if isinstance(emulator, RooflineEmulator | AcceleratedEmulator):
        return emulator.smooth
    return emulator
