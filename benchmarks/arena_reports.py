"""Arenas that X-CUBE-AI reported for float32 networks in public repositories.

The tool writes `network_generate_report.txt`: its release, the layers with their shapes, the scratch of each
and the size of the arena with inputs and outputs in it. Only these facts are kept here. Where every repository has
the file, `X-CUBE-AI/App/`, it is not named again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind

FLOAT_BITS = 32


@dataclass(frozen=True, kw_only=True)
class Report:
    """One report.

    Attributes:
        repository: On GitHub.
        release: Of X-CUBE-AI. ST Edge AI Core 1.0, 2.0, 2.1 and 2.2 are its 9.1, 10.0, 10.1 and 10.2.
        family: Networks of one architecture.
        shape: Of the input: height, width, channels.
        layers: `conv 8 3x3` (outputs, kernel), also with `same` and `/2` (stride); `depthwise 3x3`; `pool 2x2`;
            `global`, a pooling over the image; `dense 10`.
        activation_bytes: The arena.
        told: Whether the rules were read off this report; the others were read after these stood.
    """

    repository: str
    release: float
    family: str
    shape: tuple[int, int, int]
    layers: tuple[str, ...]
    activation_bytes: int
    told: bool = True

    @property
    def network(self) -> NetworkProfile:
        """The network in float32, activations fused into their layers."""
        height, width, channels = self.shape
        chain = _Chain((1, channels, height, width))
        for text in self.layers:
            chain.add(text)
        return chain.profile()


class _Chain:
    """A network of layers one after another."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._tensors: dict[str, tuple[int, ...]] = {"input": shape}
        self._operators: list[Operator] = []

    def add(self, text: str) -> None:
        """Add the layer that a text names."""
        name, *words = text.split()
        sizes = [word for word in words if "x" in word]
        numbers = [int(word) for word in words if word.isdigit()]
        steps = [int(word[1:]) for word in words if word.startswith("/")]
        kernel = tuple(int(side) for side in sizes[0].split("x")) if sizes else ()
        source, shape = list(self._tensors.items())[-1]
        channels, size = shape[1], shape[2:]
        plain = Operator(
            node=f"{name}{len(self._operators)}",
            kind=OperatorKind.CONV,
            op_type="Conv",
            inputs=(source,),
            outputs=(f"{name}{len(self._operators)}",),
            in_channels=channels,
            out_channels=numbers[0] if numbers else channels,
            in_size=size,
            kernel=kernel,
            weight_bits=FLOAT_BITS,
            activation_bits=FLOAT_BITS,
        )
        kind: OperatorKind
        out: tuple[int, ...]
        stride: tuple[int, ...]
        if name == "dense":
            kind, out, stride = OperatorKind.DENSE, (), ()
            plain = replace(plain, in_channels=math.prod(shape), in_size=(), op_type="Gemm")
        elif name == "global":
            kind, out, stride = OperatorKind.GLOBAL_POOL, (1, 1), ()
        elif name == "pool":
            kind, stride = OperatorKind.POOL, kernel
            out = tuple(a // b for a, b in zip(size, kernel, strict=True))
        else:
            kind = OperatorKind.CONV if name == "conv" else OperatorKind.DEPTHWISE_CONV
            stride = (steps[0] if steps else 1,) * 2
            out = _windows(size, kernel, stride, same="same" in words)
        operator = replace(plain, kind=kind, out_size=out, stride=stride)
        if kind is OperatorKind.DEPTHWISE_CONV:
            operator = replace(operator, groups=channels)
        self._operators.append(operator)
        self._tensors[operator.outputs[0]] = (1, operator.out_channels, *out)

    def profile(self) -> NetworkProfile:
        """Return the network."""
        return NetworkProfile(
            operators=tuple(self._operators),
            tensors=self._tensors,
            inputs=("input",),
            outputs=self._operators[-1].outputs,
        )


def _windows(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], *, same: bool
) -> tuple[int, ...]:
    if same:
        return tuple(-(-a // c) for a, c in zip(size, stride, strict=True))
    return tuple((a - b) // c + 1 for a, b, c in zip(size, kernel, stride, strict=True))


_KEYWORDS = ("conv 64 10x4 /2", "depthwise 3x3", "conv 8 1x1", "pool 2x2", "dense 30")
_ACTIVITY = ("conv 16 3x1", "conv 8 3x1", "dense 64", "dense 3")
REPORTS: Sequence[Report] = (
    Report(
        repository="WangQing-hub/STM32F469-MNIST",
        release=7.2,
        family="activity 90x3",
        shape=(90, 3, 1),
        layers=("conv 128 2x2", "pool 2x2", "dense 128", "dense 128", "dense 6"),
        activation_bytes=25_600,
    ),
    Report(
        repository="khalil-limouri/Embedded-CNN",
        release=7.2,
        family="images 80x45",
        shape=(80, 45, 3),
        layers=(
            *("conv 32 3x3 same", "pool 2x2", "conv 32 3x3 same", "pool 2x2"),
            *("conv 64 3x3 same", "pool 2x2", "conv 64 3x3 same", "pool 2x2"),
            *("conv 32 3x3 same", "pool 2x2", "dense 64", "dense 2"),
        ),
        activation_bytes=135_524,
    ),
    Report(
        repository="Lanove/XCube_AITest",
        release=7.3,
        family="dense 2",
        shape=(1, 1, 2),
        layers=("dense 64", "dense 64", "dense 5"),
        activation_bytes=512,
    ),
    Report(
        repository="Sloan-YXT/watcher-B-L475E-IOT01A",
        release=8.0,
        family="activity 26x3",
        shape=(26, 1, 3),
        layers=_ACTIVITY,
        activation_bytes=1_708,
    ),
    Report(
        repository="Floatkyun/MINIST_on_STM32_F4",
        release=8.1,
        family="digits",
        shape=(28, 28, 1),
        layers=(
            *("conv 16 3x3 same", "pool 2x2", "conv 32 3x3 same", "pool 2x2"),
            *("conv 64 3x3 same", "dense 128", "dense 10"),
        ),
        activation_bytes=53_312,
    ),
    Report(
        repository="kiki442002/STM32_embeded_audio_classifier",
        release=8.1,
        family="audio 32x30",
        shape=(32, 30, 1),
        layers=(
            *("conv 4 3x3 same", "pool 2x2", "conv 16 3x3 same", "pool 2x2"),
            *("dense 40", "dense 32", "dense 8", "dense 4"),
        ),
        activation_bytes=19_200,
    ),
    Report(
        repository="dorukduran/STM32-Keyword-Driven-Power-Socket",
        release=8.1,
        family="keywords 48x10",
        shape=(48, 10, 1),
        layers=_KEYWORDS,
        activation_bytes=22_400,
    ),
    Report(
        repository="bluemelony12/STM32_AI_HandPosture_LED",
        release=9.0,
        family="hand posture",
        shape=(8, 8, 2),
        layers=("conv 8 3x3", "pool 2x2", "dense 32", "dense 8"),
        activation_bytes=1_024,
    ),
    Report(
        repository="hadilaff/Classification-model-STM32F7",
        release=9.1,
        family="images 64x64",
        shape=(64, 64, 3),
        layers=("conv 32 3x3", "pool 2x2", "conv 32 3x3", "pool 2x2", "dense 128", "dense 1"),
        activation_bytes=149_484,
    ),
    Report(
        repository="TanHaoxuan/HAR_Net_STM32",
        release=10.0,
        family="activity 26x3",
        shape=(26, 1, 3),
        layers=_ACTIVITY,
        activation_bytes=1_760,
    ),
    Report(
        repository="barissskaan/Alexa-Version-2",
        release=10.1,
        family="keywords 48x10",
        shape=(48, 10, 1),
        layers=_KEYWORDS,
        activation_bytes=22_560,
    ),
    Report(
        repository="mayssajr/STM32_digit_recognition",
        release=10.2,
        family="digits",
        shape=(28, 28, 1),
        layers=("conv 8 3x3", "conv 16 3x3", "pool 2x2", "dense 64", "dense 10"),
        activation_bytes=25_760,
    ),
    Report(
        repository="hannasvenssoon/ai_CNN_simple",
        release=10.2,
        family="motion 128x3",
        shape=(128, 1, 3),
        layers=(
            *("conv 16 5x1 same", "pool 2x1", "conv 32 5x1 same", "pool 2x1"),
            *("conv 64 3x1 same", "global", "dense 64", "dense 3"),
        ),
        activation_bytes=9_472,
    ),
    Report(
        repository="Solomia200/stm32-ai-activity-tracker",
        release=10.2,
        family="gmp",
        shape=(24, 3, 1),
        layers=("conv 16 5x1", "conv 16 5x1", "global", "dense 4"),
        activation_bytes=4_352,
    ),
    Report(
        repository="andre1012345/stm32-mnist-classifier",
        release=10.2,
        family="dense 784",
        shape=(28, 28, 1),
        layers=("dense 128", "dense 64", "dense 1"),
        activation_bytes=3_648,
    ),
    Report(
        repository="jaivasanthanp/VitalSignLogger",
        release=10.2,
        family="dense 19",
        shape=(1, 1, 19),
        layers=("dense 32", "dense 16", "dense 3"),
        activation_bytes=204,
    ),
    Report(
        repository="nMoussa/HAR-Nucleo",
        release=5.1,
        family="gmp",
        shape=(24, 3, 1),
        layers=("conv 16 5x1", "conv 16 5x1", "global", "dense 5"),
        activation_bytes=6_976,
        told=False,
    ),
    Report(
        repository="davifcs/target_acoustic_alert_detector",
        release=7.1,
        family="audio 30x27",
        shape=(30, 27, 1),
        layers=(
            *("conv 16 3x3", "conv 16 3x3", "conv 32 3x3", "conv 32 3x3", "pool 2x2"),
            *("conv 64 3x3", "conv 64 3x3", "pool 2x2", "conv 2 1x1", "pool 2x1", "dense 1"),
        ),
        activation_bytes=77_888,
        told=False,
    ),
    Report(
        repository="Hengbote/CubeIDE_use_Cubeai",
        release=8.1,
        family="meters 32x20",
        shape=(32, 20, 3),
        layers=(
            *("conv 64 3x3 same", "pool 2x2", "conv 128 3x3 same", "pool 2x2"),
            *("conv 64 3x3 same", "pool 2x2", "dense 256", "dense 64", "dense 10"),
        ),
        activation_bytes=171_520,
        told=False,
    ),
    Report(
        repository="bluemelony12/STM32_AI_Handwrite",
        release=9.0,
        family="digits",
        shape=(28, 28, 1),
        layers=(
            *("conv 32 3x3 same", "pool 2x2", "conv 64 3x3 same", "pool 2x2"),
            *("dense 100", "dense 10"),
        ),
        activation_bytes=39_744,
        told=False,
    ),
    Report(
        repository="TristanLecourtois/IAEmbarque_failure_prediction",
        release=10.0,
        family="dense 13",
        shape=(1, 1, 13),
        layers=("dense 64", "dense 32", "dense 1"),
        activation_bytes=384,
        told=False,
    ),
)
