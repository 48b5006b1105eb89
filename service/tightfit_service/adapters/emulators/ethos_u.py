"""The emulator of Arm's Ethos-U processors from their figures alone; Vela knows more where it is installed."""

from __future__ import annotations

from tightfit_service.adapters.emulators.accelerated import AcceleratedEmulator, Rates
from tightfit_service.domain.hardware import AcceleratorKind
from tightfit_service.domain.network import OperatorKind

RATES = Rates(
    # Arm's technical overviews: utilisation of 0.6 to 0.8 in large convolutions; depthwise convolutions
    # use one product of each dot product, a fifth of which Vela's estimates show to be reached at best.
    efficiency={
        OperatorKind.CONV: 0.6,
        OperatorKind.TRANSPOSED_CONV: 0.3,
        OperatorKind.DEPTHWISE_CONV: 0.12,
        OperatorKind.DENSE: 0.3,
        OperatorKind.MATMUL: 0.3,
    },
    default=0.1,
    overhead_us=2.0,
    run_us=50.0,
    log_half_width=1.1,
    # Vela's `architecture_features.py`: blocks of the input are 8 channels deep.
    input_multiple=8,
    scored_on="a factor of three either way: no measurements of such boards were at hand",
)

ETHOS_U_EMULATOR = AcceleratedEmulator(
    name="ethos-u",
    kinds=frozenset(
        {AcceleratorKind.ETHOS_U55, AcceleratorKind.ETHOS_U65, AcceleratorKind.ETHOS_U85}
    ),
    rates=RATES,
)
"""Weights stream from flash or RAM through the bandwidth that the target states."""
