"""The list of architectures, and how each is exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from architectures import (
    attention,
    converted,
    convolutional,
    dense_outputs,
    mobile,
    sequences,
    unusual,
)
from architectures.exporting import Shape, build, export, export_program

_IMAGE: tuple[Shape, ...] = ((3, 32, 32),)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network and the way it leaves torch.

    Attributes:
        name: For people and test ids.
        make: Builds the module; its weights follow from the seed.
        written: Instead of `make`: writes the file itself, from the seed and the inputs' shapes.
        shapes: Shape of each input without the batch.
        exporter: `torchscript`, which wrote most files in the field, `dynamo`, which is torch's
            default since 2.9, or the name of another converter that `written` writes like.
        opset: Version of the operator set of the export.
        free_batch: Whether axis 0 is free or fixed at 1.
        fold_norms: Whether the exporter folds BatchNorm into convolutions.
        output_count: Number of outputs.
        task: `classify`, `regions` (an answer per pixel or cell) or `values`.
    """

    name: str
    make: Callable[[], nn.Module] | None = None
    written: Callable[[int, Sequence[Shape]], bytes] | None = None
    shapes: tuple[Shape, ...] = _IMAGE
    exporter: str = "torchscript"
    opset: int = 17
    free_batch: bool = True
    fold_norms: bool = True
    output_count: int = 1
    task: str = "classify"

    def export(self, *, seed: int = 0) -> bytes:
        """Return the ONNX file."""
        if self.written is not None:
            return self.written(seed, self.shapes)
        assert self.make is not None
        is_classifier = self.task == "classify"
        module = build(self.make, self.shapes, seed=seed, is_classifier=is_classifier)
        if self.exporter == "dynamo":
            return export_program(
                module, self.shapes, opset=self.opset, output_count=self.output_count
            )
        return export(
            module,
            self.shapes,
            opset=self.opset,
            free_batch=self.free_batch,
            fold_norms=self.fold_norms,
            output_count=self.output_count,
        )


_SERIES: tuple[Shape, ...] = ((6, 128),)
_FRAMES: tuple[Shape, ...] = ((49, 10),)
# TFLite files have a copy of a recurrent layer per frame, and each takes a second to convert.
_FEW_FRAMES: tuple[Shape, ...] = ((16, 10),)
_resnet = convolutional.ResNet

_ALL = (
    Architecture(name="resnet_padded", make=partial(_resnet, padded=True)),
    Architecture(name="resnet", make=_resnet),
    Architecture(name="resnet_unfolded", make=_resnet, fold_norms=False),
    Architecture(name="resnet_opset11", make=_resnet, opset=11),
    Architecture(name="resnet_opset20", make=_resnet, opset=20),
    Architecture(name="resnet_fixed_batch", make=_resnet, free_batch=False),
    Architecture(name="resnet_softmax", make=partial(_resnet, softmax=True)),
    Architecture(name="resnet_group_norm", make=partial(_resnet, norm=convolutional.group_norm)),
    Architecture(
        name="resnet_instance_norm", make=partial(_resnet, norm=convolutional.instance_norm)
    ),
    Architecture(name="mobilenet_v1", make=mobile.mobilenet_v1),
    Architecture(name="mobilenet_v2", make=mobile.mobilenet_v2, opset=13),
    Architecture(name="mobilenet_v3", make=mobile.mobilenet_v3),
    Architecture(name="mobilenet_v3_opset11", make=mobile.mobilenet_v3, opset=11, free_batch=False),
    Architecture(name="mobilenet_v3_dynamo", make=mobile.mobilenet_v3, exporter="dynamo", opset=18),
    Architecture(name="efficientnet_lite", make=mobile.efficientnet_lite),
    Architecture(name="ds_cnn", make=mobile.ds_cnn, shapes=((1, 49, 10),)),
    Architecture(name="channels_last", make=mobile.channels_last, shapes=((32, 32, 3),)),
    Architecture(name="round_trips", make=mobile.round_trips),
    Architecture(
        name="keras_mobilenet",
        written=converted.keras_mobilenet,
        shapes=((32, 32, 3),),
        exporter="tf2onnx",
        opset=13,
    ),
    Architecture(name="caffe_alexnet", written=converted.caffe_alexnet, exporter="Caffe2", opset=8),
    Architecture(name="squeezenet", make=convolutional.squeezenet),
    Architecture(name="shufflenet_v2", make=convolutional.shufflenet_v2),
    Architecture(
        name="shufflenet_v2_fixed_batch", make=convolutional.shufflenet_v2, free_batch=False
    ),
    Architecture(name="densenet", make=convolutional.densenet),
    Architecture(name="inception", make=convolutional.inception),
    Architecture(name="resnext", make=convolutional.resnext),
    Architecture(name="convnext", make=attention.convnext),
    Architecture(name="convnext_opset13", make=attention.convnext, opset=13),
    Architecture(name="convnext_opset20", make=attention.convnext, opset=20),
    Architecture(name="unet", make=dense_outputs.unet, task="regions"),
    Architecture(name="unet_opset11", make=dense_outputs.unet, opset=11, task="regions"),
    Architecture(name="unet_transposed", make=dense_outputs.unet_transposed, task="regions"),
    Architecture(
        name="detector_maps",
        make=dense_outputs.detector_maps,
        shapes=((3, 64, 64),),
        output_count=2,
        task="regions",
    ),
    Architecture(
        name="detector_decoded",
        make=dense_outputs.detector_decoded,
        shapes=((3, 64, 64),),
        task="regions",
    ),
    Architecture(
        name="detector_top_boxes",
        make=dense_outputs.detector_top_boxes,
        shapes=((3, 64, 64),),
        output_count=2,
        task="regions",
    ),
    Architecture(name="fomo", make=dense_outputs.fomo, shapes=((3, 64, 64),), task="regions"),
    Architecture(name="pixel_shuffle", make=dense_outputs.pixel_shuffle, task="values"),
    Architecture(name="cbam", make=unusual.cbam),
    Architecture(name="two_heads", make=unusual.two_heads, output_count=2),
    Architecture(name="embedding", make=unusual.embedding, task="values"),
    Architecture(name="spatial_transformer", make=unusual.spatial_transformer),
    Architecture(name="activations", make=unusual.activations),
    Architecture(name="mobilevit", make=attention.mobilevit),
    Architecture(name="vit_fused", make=attention.vit_fused),
    Architecture(name="vit_fused_opset13", make=attention.vit_fused, opset=13),
    Architecture(name="vit_separate", make=attention.vit_separate),
    Architecture(name="vit_einsum", make=attention.vit_einsum),
    Architecture(name="vit_torch", make=attention.vit_torch),
    Architecture(name="vit_torch_dynamo", make=attention.vit_torch, exporter="dynamo", opset=20),
    Architecture(name="autoencoder", make=sequences.autoencoder, shapes=((128,),), task="values"),
    Architecture(name="cnn_1d", make=sequences.cnn_1d, shapes=_SERIES),
    Architecture(name="tcn", make=sequences.tcn, shapes=_SERIES),
    Architecture(name="lstm", make=sequences.lstm, shapes=_FEW_FRAMES),
    Architecture(name="lstm_both_ways", make=sequences.bidirectional_lstm, shapes=_FEW_FRAMES),
    Architecture(name="gru", make=sequences.gru, shapes=_FEW_FRAMES),
    Architecture(name="rnn", make=sequences.rnn, shapes=_FEW_FRAMES),
    Architecture(name="crnn", make=sequences.crnn, shapes=_FRAMES),
    Architecture(
        name="gru_streaming",
        make=sequences.gru_streaming,
        shapes=((10,), (32,)),
        output_count=2,
    ),
    Architecture(
        name="lstm_autoencoder",
        make=sequences.lstm_autoencoder,
        shapes=((16, 6),),
        task="values",
    ),
    Architecture(name="raw_audio", make=sequences.raw_audio, shapes=((1, 1024),)),
    Architecture(name="two_inputs", make=sequences.two_inputs, shapes=((3, 32, 32), (8,))),
)

ARCHITECTURES: Mapping[str, Architecture] = {item.name: item for item in _ALL}

FAST = ("mobilenet_v3", "shufflenet_v2", "unet", "vit_fused", "gru")
"""Few that cover most rules, for every run of the tests."""
