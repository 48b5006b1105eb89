"""What happens to an architecture on its way through the service, step by step, with figures or reasons."""

from __future__ import annotations

import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto

from architectures.exactness import with_copies
from architectures.exporting import signals
from architectures.registry import Architecture
from tightfit_service.adapters.formats.onnx_export import OnnxExporter
from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.formats.tflite_convert import is_channels_last
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_import import TfliteImporter
from tightfit_service.adapters.training.torch_trainer import TorchTrainer
from tightfit_service.application.ports import (
    ExportedModel,
    Exporter,
    QuantizationSettings,
    RecoverySettings,
    Teachers,
    TrainingData,
)
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.errors import TightfitError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.network import PruningSpace
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.graph.structure import graph_inputs
from tightfit_service.passes.quantization import StaticQuantizationPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

FloatArray = npt.NDArray[np.float32]
Figures = dict[str, float]

STEPS = ("import", "profile", "space", "exact", "prune", "train", "onnx", "tflite", "back")
PRUNED_SHARE = 0.3
_EXACT = 1e-4
_MODEL_OUTPUT = "its channels are the model's output"
_SAMPLES = 64
_TO_NHWC = (0, 2, 3, 1)
_CHANNELS_LAST = frozenset({"channels_last", "keras_mobilenet"})
"""Networks whose images come as (N, H, W, C)."""
_SHORT = RecoverySettings(epochs=3, batch_size=16, augmentation="none")


class StepFailedError(Exception):
    """A step ran and did not do what it should; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one step gave: figures where it worked, a reason where it did not."""

    works: bool
    figures: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All steps of one architecture.

    Attributes:
        operators: ONNX operator types of the working graph.
        outcomes: Per step.
        frozen: Channels that cannot be removed, by reason; without the model's own outputs.
        float_in_onnx: Operator types that the int8 ONNX file computes in float, each time.
        float_in_tflite: Operator types that the TFLite exporter names as computed in float.
    """

    name: str
    operators: tuple[str, ...] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    frozen: Mapping[str, int] = field(default_factory=dict)
    float_in_onnx: tuple[str, ...] = ()
    float_in_tflite: tuple[str, ...] = ()


def check(architecture: Architecture, steps: Sequence[str] = STEPS) -> Report:
    """Run the steps, in order; one that fails leaves the next with what the last good one made."""
    return _Way(architecture).go(steps)


class _Way:
    """One architecture under way."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.rng = np.random.default_rng(zlib.crc32(architecture.name.encode()))
        self.original = b""
        self.graph = b""
        self.current = b""
        self.space = PruningSpace(groups=())
        self.operators: tuple[str, ...] = ()
        self.float_in_onnx: tuple[str, ...] = ()
        self.float_in_tflite: tuple[str, ...] = ()
        self.outcomes: dict[str, Outcome] = {}

    def go(self, names: Sequence[str]) -> Report:
        steps: dict[str, Callable[[], Figures]] = {
            "import": self._import,
            "profile": self._profile,
            "space": self._space,
            "exact": self._exact,
            "prune": self._prune,
            "train": self._train,
            "onnx": self._onnx,
            "tflite": self._tflite,
            "back": self._back,
        }
        for name in names:
            if name != "import" and not self.outcomes["import"].works:
                self.outcomes[name] = Outcome(works=False, reason="it was not imported")
                continue
            self.outcomes[name] = _outcome(steps[name])
        return Report(
            name=self.architecture.name,
            operators=self.operators,
            outcomes=self.outcomes,
            frozen=self._frozen(),
            float_in_onnx=self.float_in_onnx,
            float_in_tflite=self.float_in_tflite,
        )

    def _frozen(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for item in self.space.frozen:
            if item.reason != _MODEL_OUTPUT:
                counts[item.reason] += item.channel_count
        return dict(counts)

    def inputs(self, count: int) -> list[FloatArray]:
        """Return random inputs, one array per input of the network."""
        return [signals(self.rng, (count, *shape)) for shape in self.architecture.shapes]

    def samples(self, count: int) -> Samples:
        """Return inputs, labelled by what the original sees in them where it is a classifier."""
        stored, *more = self.inputs(count)
        labels = None
        if self.architecture.task == "classify":
            labels = _run(self.graph, [stored, *more])[0].reshape(count, -1).argmax(axis=1)
        layout = Layout.NCHW if stored.ndim == 4 else Layout.ANY
        if self.architecture.name in _CHANNELS_LAST:
            layout = Layout.NHWC
        return Samples(
            stored=stored,
            labels=labels,
            layout=layout,
            model_layout=layout,
            input_name="input",
            others={
                f"input{index}": StoredInput(
                    stored=other, layout=Layout.ANY, model_layout=Layout.ANY
                )
                for index, other in enumerate(more, start=1)
            },
        )

    def _import(self) -> Figures:
        self.original = self.architecture.export()
        importer = OnnxImporter()
        imported = importer.import_model(self.original)
        self.graph = self.current = imported.graph
        self.operators = tuple(sorted({n.op_type for n in load_model(self.graph).graph.node}))
        return {"parity": importer.check_parity(self.original, self.graph, self.inputs(4))}

    def _profile(self) -> Figures:
        profile = OnnxGraphInspector().profile(self.graph)
        if not profile.macs:
            raise StepFailedError("the profile counts no work")
        return {"macs": float(profile.macs), "weights": float(profile.weight_count)}

    def _space(self) -> Figures:
        self.space = StructuredPruningPass().space(self.graph)
        share = _prunable(self.space)
        if not share:
            raise StepFailedError("no channel can be removed")
        return {"groups": float(len(self.space.groups)), "prunable": share}

    def _exact(self) -> Figures:
        data, keep = with_copies(self.graph)
        inputs = self.inputs(2)
        before = _run(data, inputs)
        after = _run(StructuredPruningPass().apply(data, keep), inputs)
        worst = max(
            float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12))
            for one, other in zip(before, after, strict=True)
        )
        if worst > _EXACT:
            raise StepFailedError(
                f"removing channels that nothing reads changes outputs by {worst:.2g}"
            )
        return {"difference": worst}

    def _prune(self) -> Figures:
        keep = {}
        for group in self.space.groups:
            kept = max(1, round(group.unit_count * (1 - PRUNED_SHARE)))
            keep[group.group_id] = sorted(
                self.rng.choice(group.unit_count, kept, replace=False).tolist()
            )
        pruned = StructuredPruningPass().apply(self.graph, keep)
        inputs = self.inputs(3)
        for one, other in zip(_run(self.graph, inputs), _run(pruned, inputs), strict=True):
            if one.shape != other.shape or not np.isfinite(other).all():
                raise StepFailedError("the pruned network gives other shapes, or no numbers")
        inspector = OnnxGraphInspector()
        left = inspector.profile(pruned).macs / inspector.profile(self.graph).macs
        if left >= 1.0:
            raise StepFailedError("the pruned network does as much work as before")
        self.current = pruned
        return {"macs_left": left}

    def _train(self) -> Figures:
        samples = self.samples(_SAMPLES)
        with tempfile.TemporaryDirectory() as folder:
            result = TorchTrainer(threads=1).recover(
                self.current,
                teachers=Teachers(original=self.graph),
                data=TrainingData(train=samples, selection=samples),
                settings=_SHORT,
                cache_dir=Path(folder),
                on_progress=lambda _share, _text: None,
            )
        losses = [entry["loss"] for entry in result.history if "loss" in entry]
        if not np.isfinite(losses).all():
            raise StepFailedError("the loss is not finite")
        before = _distance(self.graph, self.current, samples)
        after = _distance(self.graph, result.graph, samples)
        if after >= before:
            raise StepFailedError(
                f"training leaves outputs as far from the original's: {before:.3g} to {after:.3g}"
            )
        self.current = result.graph
        return {"steps": float(result.steps), "error_left": after / before}

    def _onnx(self) -> Figures:
        exported = self._exported(
            OnnxExporter(quantizer=StaticQuantizationPass()), NumberFormat.INT8, graph=self.current
        )
        self.float_in_onnx = _computed_in_float(exported.data)
        return dict(exported.parity)

    def _tflite(self) -> Figures:
        exported = self._exported(TfliteExporter(), NumberFormat.INT8, graph=self.current)
        told = " ".join(note for note in exported.format_notes if "float32" in note)
        named = set(re.split(r"[\s,:]+", told))
        nodes = load_model(self.current).graph.node
        self.float_in_tflite = tuple(sorted({n.op_type for n in nodes if n.name in named}))
        return dict(exported.parity)

    def _back(self) -> Figures:
        """Read a float TFLite file of the original as if a user had sent that instead."""
        data = self._exported(TfliteExporter(), NumberFormat.FLOAT32, graph=self.graph).data
        importer = TfliteImporter()
        graph = importer.import_model(data).graph
        inputs = [
            np.ascontiguousarray(value.transpose(_TO_NHWC)) if is_turned else value
            for value, is_turned in zip(self.inputs(2), self._turned_inputs(), strict=True)
        ]
        return {
            "parity": importer.check_parity(data, graph, inputs),
            "prunable": _prunable(StructuredPruningPass().space(graph)),
        }

    def _turned_inputs(self) -> list[bool]:
        model = load_model(self.graph)
        return [is_channels_last(model, name) for name in graph_inputs(model)]

    def _exported(
        self, exporter: Exporter, number_format: NumberFormat, *, graph: bytes
    ) -> ExportedModel:
        return exporter.export(
            graph,
            calibration=self.samples(_SAMPLES),
            settings=QuantizationSettings(number_format=number_format),
            metadata={},
        )


def _prunable(space: PruningSpace) -> float:
    """Return the share of channels, other than the model's outputs, that can be removed."""
    free = [
        width
        for node, width in space.output_widths.items()
        if any(node in group.producers for group in space.groups)
    ]
    full = {group.group_id: group.unit_count for group in space.groups}
    prunable = sum(width.channels(full) - width.fixed for width in free)
    frozen = sum(f.channel_count for f in space.frozen if f.reason != _MODEL_OUTPUT)
    return prunable / (prunable + frozen) if prunable else 0.0


def _outcome(step: Callable[[], Figures]) -> Outcome:
    try:
        return Outcome(works=True, figures=step())
    except TightfitError as error:
        return Outcome(works=False, reason=error.message)
    except StepFailedError as error:
        return Outcome(works=False, reason=str(error))
    except Exception as error:  # noqa: BLE001 - a crash is what the suite is there to name
        text = str(error).strip().splitlines()
        return Outcome(
            works=False, reason=f"{type(error).__name__}: {text[0][:160] if text else ''}"
        )


def _run(graph: bytes, inputs: list[FloatArray]) -> list[FloatArray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    results = session.run(None, dict(zip(names, inputs, strict=True)))
    return [np.asarray(value) for value in results]


def _distance(reference: bytes, graph: bytes, samples: Samples) -> float:
    """Return the mean squared difference of outputs, over the variance of the reference's."""
    inputs = [samples.inputs(slice(None))]
    inputs += [other.batch(slice(None)) for other in samples.others.values()]
    total = 0.0
    for one, other in zip(_run(reference, inputs), _run(graph, inputs), strict=True):
        total += float(((one - other) ** 2).mean() / max(one.var(), 1e-12))
    return total


def _computed_in_float(data: bytes) -> tuple[str, ...]:
    """Return the operator types of which no node stands between integers.

    Such a node reads dequantized activations, has no weights in float, and is read rounded. The scales of a Resize
    are no weights.
    """
    model = load_model(data)
    nodes = model.graph.node
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantized = {
        n.output[0]
        for n in nodes
        if n.op_type == "DequantizeLinear" and n.input[0] not in constants
    }
    rounded = {n.input[0] for n in nodes if n.op_type == "QuantizeLinear"}
    types: dict[str, bool] = {}
    for node in nodes:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        named = () if node.op_type == "Resize" else node.input
        weights = (constants[name] for name in named if name in constants)
        in_integers = (
            any(name in dequantized for name in node.input)
            and any(name in rounded for name in node.output)
            and not any(w.data_type == TensorProto.FLOAT and np.prod(w.dims) > 1 for w in weights)
        )
        types[node.op_type] = types.get(node.op_type, False) or in_integers
    return tuple(sorted(name for name, in_integers in types.items() if not in_integers))
