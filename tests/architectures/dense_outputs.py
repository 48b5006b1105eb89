"""Networks that answer per pixel or per cell: segmentation and detection."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from torch import Tensor, nn

from architectures.blocks import InvertedResidual, conv_norm, conv_relu


class UNet(nn.Module):
    """Ronneberger et al., MICCAI 2015: skip connections, joined after upsampling."""

    def __init__(self, *, transposed: bool = False) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv_relu(3, 16), conv_relu(16, 16))
        self.down2 = conv_relu(16, 32)
        self.bottom = conv_relu(32, 48)
        self.up2: nn.Module = nn.Upsample(scale_factor=2, mode="nearest")
        self.up1: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        if transposed:
            self.up2 = nn.ConvTranspose2d(48, 48, 2, stride=2)
            self.up1 = nn.ConvTranspose2d(32, 32, 2, stride=2)
        self.merge2 = conv_relu(48 + 32, 32)
        self.merge1 = conv_relu(32 + 16, 16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.bottom(F.max_pool2d(two, 2))
        y = self.merge2(torch.cat([self.up2(y), two], dim=1))
        y = self.merge1(torch.cat([self.up1(y), one], dim=1))
        logits: Tensor = self.head(y)
        return logits


def unet() -> nn.Module:
    """With nearest and bilinear upsampling."""
    return UNet()


def unet_transposed() -> nn.Module:
    """With transposed convolutions."""
    return UNet(transposed=True)


class Focus(nn.Module):
    """Four slices of every second pixel, joined as channels (YOLOv5)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1
        )


class CrossStage(nn.Module):
    """Half of the channels through a bottleneck, all states joined (C2f of YOLOv8)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.enter = conv_norm(in_channels, out_channels, kernel=1, activation=nn.SiLU())
        self.inner = conv_norm(half, half, activation=nn.SiLU())
        self.leave = conv_norm(3 * half, out_channels, kernel=1, activation=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.enter(x).chunk(2, dim=1)
        y: Tensor = self.leave(torch.cat([one, two, two + self.inner(two)], dim=1))
        return y


class Detector(nn.Module):
    """Two scales, a top-down path, boxes and classes per cell: decoded, or raw maps per head."""

    def __init__(self, *, decoded: bool) -> None:
        super().__init__()
        self.decoded = decoded
        self.stem = nn.Sequential(Focus(), conv_norm(12, 16, activation=nn.SiLU()))
        self.stage1 = nn.Sequential(
            conv_norm(16, 32, stride=2, activation=nn.SiLU()), CrossStage(32, 32)
        )
        self.stage2 = nn.Sequential(
            conv_norm(32, 48, stride=2, activation=nn.SiLU()), CrossStage(48, 48)
        )
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.mix = conv_norm(96, 48, kernel=1, activation=nn.SiLU())
        self.merge = CrossStage(80, 32)
        self.head1 = nn.Conv2d(32, 4 + 3, 1)
        self.head2 = nn.Conv2d(48, 4 + 3, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        one = self.stage1(self.stem(x))
        two = self.stage2(one)
        two = self.mix(torch.cat([two, self.pool(two)], dim=1))
        up = F.interpolate(two, scale_factor=2.0, mode="nearest")
        one = self.merge(torch.cat([up, one], dim=1))
        maps = (self.head1(one), self.head2(two))
        if not self.decoded:
            return maps
        cells = torch.cat([item.flatten(2) for item in maps], dim=2)
        boxes, classes = torch.split_with_sizes(cells, (4, 3), dim=1)
        return torch.cat([boxes.sigmoid() * 64.0, classes.sigmoid()], dim=1)


class BestBoxes(nn.Module):
    """Behind a detector: the boxes of the ten greatest scores, as exported with post-processing."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        # Most cells show nothing, and scores are far from each other, as after training
        # (the prior of Lin et al., ICCV 2017): which are best must not hang on rounding alone.
        for head in (detector.head1, detector.head2):
            assert head.bias is not None
            nn.init.normal_(head.weight[4:], std=0.5)
            nn.init.constant_(head.bias[4:], -4.6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.detector(x)
        boxes, classes = cells[:, :4], cells[:, 4:]
        scores, places = classes.amax(dim=1).topk(10, dim=1)
        return boxes.gather(2, places[:, None].expand(-1, 4, -1)), scores


def detector_top_boxes() -> nn.Module:
    """Decoded, then TopK and GatherElements, which have no rule for pruning."""
    return BestBoxes(Detector(decoded=True))


def detector_maps() -> nn.Module:
    """Two outputs, one per scale."""
    return Detector(decoded=False)


def detector_decoded() -> nn.Module:
    """One output (batch, 7, cells), decoded inside the network."""
    return Detector(decoded=True)


def fomo() -> nn.Module:
    """A MobileNetV2 cut at an eighth of the input's size with a softmax per cell (FOMO)."""
    return nn.Sequential(
        conv_norm(3, 16, stride=2, activation=nn.ReLU6()),
        InvertedResidual(16, 16, stride=2),
        InvertedResidual(16, 24, stride=2),
        InvertedResidual(24, 24),
        nn.Conv2d(24, 32, 1),
        nn.ReLU(),
        nn.Conv2d(32, 3, 1),
        nn.Softmax(dim=1),
    )


def pixel_shuffle() -> nn.Module:
    """Shi et al., CVPR 2016: super-resolution; DepthToSpace and its reverse."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.PReLU(32),
        nn.PixelShuffle(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )
