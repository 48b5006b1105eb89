"""Classifiers made for phones and microcontrollers: depthwise-separable convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from architectures.blocks import InvertedResidual, classifier, conv_norm, conv_relu


def _separable(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv_relu(in_channels, in_channels, stride=stride, groups=in_channels),
        conv_relu(in_channels, out_channels, kernel=1),
    )


def mobilenet_v1() -> nn.Module:
    """Howard et al. 2017, at a fifth of its width."""
    return nn.Sequential(
        conv_relu(3, 16, stride=2),
        _separable(16, 32),
        _separable(32, 48, 2),
        _separable(48, 48),
        _separable(48, 96, 2),
        classifier(96),
    )


def mobilenet_v2() -> nn.Module:
    """Sandler et al., CVPR 2018: inverted residuals, ReLU6."""
    return nn.Sequential(
        conv_norm(3, 16, stride=2, activation=nn.ReLU6()),
        InvertedResidual(16, 16, expand=1),
        InvertedResidual(16, 24, stride=2),
        InvertedResidual(24, 24),
        InvertedResidual(24, 32),
        InvertedResidual(32, 32),
        conv_norm(32, 64, kernel=1, activation=nn.ReLU6()),
        classifier(64),
    )


def mobilenet_v3() -> nn.Module:
    """Howard et al., ICCV 2019: hard-swish, squeeze-and-excitation, two dense layers."""
    return nn.Sequential(
        conv_norm(3, 16, stride=2, activation=nn.Hardswish()),
        InvertedResidual(16, 16, expand=2, squeeze=True, activation=nn.ReLU),
        InvertedResidual(16, 24, stride=2, kernel=5, squeeze=True, activation=nn.Hardswish),
        InvertedResidual(24, 24, kernel=5, squeeze=True, activation=nn.Hardswish),
        conv_norm(24, 48, kernel=1, activation=nn.Hardswish()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 64),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )


def efficientnet_lite() -> nn.Module:
    """Tan and Le, ICML 2019, in the form for integer hardware: no squeeze, ReLU6."""
    return nn.Sequential(
        conv_norm(3, 16, stride=2, activation=nn.ReLU6()),
        InvertedResidual(16, 16, expand=1),
        InvertedResidual(16, 24, kernel=5, stride=2),
        InvertedResidual(24, 24, kernel=5),
        InvertedResidual(24, 40, kernel=3),
        InvertedResidual(40, 40, kernel=3),
        conv_norm(40, 80, kernel=1, activation=nn.ReLU6()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(80, 10),
    )


def ds_cnn() -> nn.Module:
    """Zhang et al. 2017 ("Hello Edge"): keywords from 49 frames of 10 coefficients."""
    return nn.Sequential(
        nn.Conv2d(1, 32, (10, 4), stride=2, padding=(5, 1)),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        _separable(32, 32),
        _separable(32, 32),
        _separable(32, 32),
        nn.Dropout(0.4),
        classifier(32, 12),
    )


class ChannelsLast(nn.Module):
    """A network whose input holds channels last, as files converted from TensorFlow do."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x.permute(0, 3, 1, 2))
        return y


def channels_last() -> nn.Module:
    """MobileNetV1 behind a transpose."""
    return ChannelsLast(mobilenet_v1())


class RoundTrips(nn.Module):
    """Layers between transposes there and back, as converters leave where layouts change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv_relu(3, 24, stride=2)
        self.scale = nn.Linear(24, 24)
        self.second = conv_relu(24, 32, stride=2)
        self.dense = nn.Linear(32 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        x = self.scale(x).sigmoid() * x
        x = self.second(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y: Tensor = self.dense(x.flatten(1))
        return y


def round_trips() -> nn.Module:
    """Transposes around a dense layer, and in front of the flattening."""
    return RoundTrips()
