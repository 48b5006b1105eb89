"""Public networks by name, as far as tables of measurements name them without their layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is published of a network: millions of products, parameters and output elements.

    Attributes:
        side: Input height and width that the figures are for.
        layers: Convolutions and dense layers.
        depthwise: Share of the products in depthwise or grouped convolutions.
        dense: Share of the parameters in dense layers.
    """

    macs: float
    params: float
    outputs: float
    layers: int
    depthwise: float = 0.0
    dense: float = 0.0
    side: int = 224


NETWORKS: Mapping[str, Facts] = {
    # Products, parameters and outputs of the papers, torchvision and timm; YOLO from their model zoos
    # (half of the stated operations); layers counted in the definitions.
    "alexnet": Facts(macs=714, params=61.1, outputs=0.65, layers=8, dense=0.96),
    "squeezenet1_0": Facts(macs=819, params=1.25, outputs=3.6, layers=26),
    "squeezenet1_1": Facts(macs=349, params=1.24, outputs=2.2, layers=26),
    "squeezenet": Facts(macs=418, params=1.23, outputs=2.6, layers=26, side=227),
    "resnet18": Facts(macs=1814, params=11.7, outputs=2.5, layers=21),
    "resnet34": Facts(macs=3664, params=21.8, outputs=3.7, layers=37),
    "resnet50": Facts(macs=4089, params=25.6, outputs=11.1, layers=54),
    "resnet101": Facts(macs=7801, params=44.5, outputs=16.2, layers=105),
    "resnet152": Facts(macs=11514, params=60.2, outputs=22.6, layers=156),
    "resnext50": Facts(macs=4230, params=25.0, outputs=14.4, layers=54, depthwise=0.25),
    "densenet121": Facts(macs=2834, params=8.0, outputs=6.9, layers=121),
    "densenet169": Facts(macs=3360, params=14.1, outputs=7.3, layers=169),
    "densenet201": Facts(macs=4291, params=20.0, outputs=7.9, layers=201),
    "densenet161": Facts(macs=7728, params=28.7, outputs=11.1, layers=161),
    "vgg11": Facts(macs=7609, params=132.9, outputs=7.4, layers=11, dense=0.93),
    "vgg13": Facts(macs=11308, params=133.0, outputs=12.3, layers=13, dense=0.93),
    "vgg16": Facts(macs=15470, params=138.4, outputs=13.6, layers=16, dense=0.89),
    "vgg19": Facts(macs=19632, params=143.7, outputs=14.9, layers=19, dense=0.86),
    "googlenet": Facts(macs=1500, params=6.6, outputs=3.2, layers=58),
    "inception_v1": Facts(macs=1500, params=6.6, outputs=3.2, layers=58),
    "inception_v3": Facts(macs=5713, params=23.8, outputs=9.0, layers=95, side=299),
    "inception_v4": Facts(macs=12270, params=42.7, outputs=15.1, layers=150, side=299),
    "inception_resnet_v2": Facts(macs=13180, params=55.8, outputs=25.1, layers=245, side=299),
    "mobilenet_v1": Facts(macs=569, params=4.2, outputs=5.1, layers=28, depthwise=0.03),
    "mobilenet": Facts(macs=569, params=4.2, outputs=5.1, layers=28, depthwise=0.03),
    "mobilenet_v2": Facts(macs=301, params=3.5, outputs=6.7, layers=53, depthwise=0.07),
    "mobilenet_v3_large": Facts(macs=217, params=5.5, outputs=4.4, layers=62, depthwise=0.11),
    "mobilenet_v3_small": Facts(macs=57, params=2.5, outputs=1.4, layers=52, depthwise=0.14),
    "mobilenet_v3": Facts(macs=246, params=5.1, outputs=4.4, layers=62, depthwise=0.11),
    "mnasnet": Facts(macs=314, params=4.4, outputs=5.5, layers=53, depthwise=0.09),
    "mnasnet05": Facts(macs=100, params=2.2, outputs=3.1, layers=53, depthwise=0.12),
    "proxylessnasnet": Facts(macs=320, params=4.1, outputs=6.0, layers=61, depthwise=0.1),
    "shufflenet": Facts(macs=137, params=1.9, outputs=3.0, layers=50, depthwise=0.3),
    "shufflenet_v2": Facts(macs=145, params=2.3, outputs=1.95, layers=56, depthwise=0.06),
    "efficientnet_b0": Facts(macs=386, params=5.3, outputs=6.7, layers=81, depthwise=0.1),
    "efficientnetv2_b0": Facts(macs=720, params=7.1, outputs=4.4, layers=70, depthwise=0.05),
    "regnety_400m": Facts(macs=402, params=4.3, outputs=3.9, layers=80, depthwise=0.15),
    "mobilenet_v1_ssd": Facts(
        macs=1200, params=6.8, outputs=9.5, layers=47, depthwise=0.03, side=300
    ),
    "mobilenet_v2_ssd": Facts(
        macs=800, params=4.5, outputs=12.5, layers=72, depthwise=0.07, side=300
    ),
    "mobilenet_ssd": Facts(macs=1148, params=5.8, outputs=9.5, layers=47, depthwise=0.03, side=300),
    "ssd_mobilenet_v2_coco": Facts(
        macs=800, params=4.5, outputs=12.5, layers=72, depthwise=0.07, side=300
    ),
    "ssd_mobilenet_v1_0.75_coco": Facts(
        macs=700, params=4.1, outputs=7.2, layers=47, depthwise=0.03, side=300
    ),
    "yolov5s": Facts(macs=8250, params=7.2, outputs=30.0, layers=60, side=640),
    "yolov5m": Facts(macs=24500, params=21.2, outputs=57.0, layers=82, side=640),
    "yolov6n": Facts(macs=5700, params=4.7, outputs=14.0, layers=50, side=640),
    "yolov6s": Facts(macs=22650, params=18.5, outputs=28.0, layers=50, side=640),
    "yolov6m": Facts(macs=42900, params=34.9, outputs=52.0, layers=80, side=640),
    "yolov7": Facts(macs=52350, params=36.9, outputs=80.0, layers=92, side=640),
    "yolov7-tiny": Facts(macs=6900, params=6.2, outputs=25.0, layers=58, side=640),
    "yolov8n": Facts(macs=4350, params=3.2, outputs=21.0, layers=64, side=640),
    "yolov8s": Facts(macs=14300, params=11.2, outputs=42.0, layers=64, side=640),
    "yolov8m": Facts(macs=39450, params=25.9, outputs=80.0, layers=84, side=640),
    "yolo11n": Facts(macs=3250, params=2.6, outputs=22.0, layers=90, depthwise=0.02, side=640),
    "yolo11m": Facts(macs=34000, params=20.1, outputs=85.0, layers=125, depthwise=0.01, side=640),
    "yolov10n": Facts(macs=3350, params=2.3, outputs=22.0, layers=90, depthwise=0.02, side=640),
    "yolov10s": Facts(macs=10800, params=7.2, outputs=40.0, layers=90, depthwise=0.02, side=640),
    "yolox_s": Facts(macs=13400, params=9.0, outputs=38.0, layers=83, side=640),
    "yolov4-tiny": Facts(macs=3454, params=6.0, outputs=10.0, layers=21, side=416),
    "person_detection": Facts(
        macs=7.16, params=0.21, outputs=0.22, layers=28, depthwise=0.1, side=96
    ),
}
_SPELLINGS = (
    (r"^mobilenetv2_0_5_s8_v1$", "mobilenet_v2_0.5"),
    (r"^mobilenetv2-12$|^mobilenetv2_s8_v1$", "mobilenet_v2"),
    (r"^resnet50-v2-7$|^resnet50_v1$", "resnet50"),
    (r"^resnet152_v2$", "resnet152"),
    (r"^resnet_v2_101$", "resnet101"),
    (r"^yolov5s_relu$", "yolov5s"),
    (r"^yolo11n(_320)?_s8_v1$", "yolo11n"),
    (r"^person_detection\b.*$", "person_detection"),
    (r"^(vgg\d\d)_bn$", r"\1"),
)


def known_network(
    name: str, input_shape: str, macs: float, params: float, *, by_shape: bool = False
) -> NetworkProfile | None:
    """Return a network of the published facts, spread evenly over its layers, at 8 bits.

    With `by_shape` the shapes of the layers give the products, as microcontroller kernels see them;
    otherwise they give the outputs, and the products are stated beside them.

    A row's own products and parameters come before the published ones; products and outputs follow the
    area of the input. None where neither says enough.
    """
    facts = _facts(name)
    if facts is None:
        if not macs:
            return None
        # Outputs and layers of a network of that size: a square-root law through those above.
        facts = Facts(
            macs=macs / 1e6,
            params=params / 1e6,
            outputs=0.25 * math.sqrt(macs / 1e6),
            layers=50,
            depthwise=0.05 if macs < 8e8 else 0.0,
        )
        area = 1.0
    else:
        side = _side(input_shape) or facts.side
        area = (side / facts.side) ** 2
    products = macs or facts.macs * 1e6 * area
    weights = params or facts.params * 1e6
    network = _spread(facts, products, weights, facts.outputs * 1e6 * area)
    return (
        replace(network, operators=tuple(map(_shaped, network.operators))) if by_shape else network
    )


def _shaped(operator: Operator) -> Operator:
    """Return the layer as a 1x1 convolution of its products, or a depthwise one of its outputs."""
    pixels = math.prod(operator.out_size)
    if operator.kind is OperatorKind.CONV:
        depth = max(round(operator.macs / (pixels * operator.out_channels)), 1)
        return replace(operator, kernel=(1, 1), in_channels=depth)
    return operator


def _facts(name: str) -> Facts | None:
    for pattern, replacement in _SPELLINGS:
        name = re.sub(pattern, replacement, name)
    if name in NETWORKS:
        return NETWORKS[name]
    # mobilenet_v1_0.25_192: width multiplier; products and parameters go with its square.
    match = re.fullmatch(r"(mobilenet_v[12]|mnasnet)_(\d\.\d+)(_\d+)?", name)
    if match is None:
        return None
    base, width = NETWORKS[match.group(1)], float(match.group(2))
    return Facts(
        macs=base.macs * width**2,
        params=base.params * width**2,
        outputs=base.outputs * width,
        layers=base.layers,
        depthwise=min(base.depthwise / width, 0.5),
        side=int((match.group(3) or "_224")[1:]) if match.group(3) else base.side,
    )


def _side(text: str) -> int:
    sides = [int(n) for n in re.findall(r"\d+", text) if int(n) >= 20]
    return round(math.sqrt(sides[0] * sides[1])) if len(sides) > 1 else 0


def _spread(facts: Facts, macs: float, params: float, outputs: float) -> NetworkProfile:
    dense = 1 if facts.dense else 0
    deep = round(facts.layers * 0.33) if facts.depthwise else 0
    plain = max(facts.layers - deep - dense, 1)
    dense_macs = params * facts.dense
    operators = []
    for i in range(plain + deep + dense):
        kind = (
            OperatorKind.CONV
            if i < plain
            else OperatorKind.DEPTHWISE_CONV
            if i < plain + deep
            else OperatorKind.DENSE
        )
        share = {
            OperatorKind.CONV: (macs - dense_macs) * (1 - facts.depthwise) / plain,
            OperatorKind.DEPTHWISE_CONV: (macs - dense_macs) * facts.depthwise / max(deep, 1),
            OperatorKind.DENSE: dense_macs,
        }[kind]
        pixels = max(round(outputs / (plain + deep) / 64), 1)
        operators.append(
            Operator(
                node=f"layer_{i}",
                kind=kind,
                op_type="Gemm" if kind is OperatorKind.DENSE else "Conv",
                inputs=(f"tensor_{i}",),
                outputs=(f"tensor_{i + 1}",),
                macs=round(share),
                in_channels=64,
                out_channels=64,
                in_size=() if kind is OperatorKind.DENSE else (1, pixels),
                out_size=() if kind is OperatorKind.DENSE else (1, pixels),
                kernel=() if kind is OperatorKind.DENSE else (3, 3),
                stride=() if kind is OperatorKind.DENSE else (1, 1),
                groups=64 if kind is OperatorKind.DEPTHWISE_CONV else 1,
                weight_count=round(dense_macs)
                if kind is OperatorKind.DENSE
                else round(params * (1 - facts.dense) / plain)
                if kind is OperatorKind.CONV
                else 0,
            )
        )
    tensors = {
        f"tensor_{i}": (1, 64, 1, max(round(outputs / (plain + deep) / 64), 1))
        for i in range(len(operators) + 1)
    }
    return NetworkProfile(
        operators=tuple(operators),
        tensors=tensors,
        inputs=("tensor_0",),
        outputs=(f"tensor_{len(operators)}",),
    )
