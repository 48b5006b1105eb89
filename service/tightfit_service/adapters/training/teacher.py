"""The teachers' answers on augmented views of the training data, each computed once and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from tightfit_service.adapters.training.targets import find_targets
from tightfit_service.application.samples import FloatArray, IntArray, Samples
from tightfit_service.domain.errors import InvalidRequestError, UnsupportedError

VIEW_COUNT = 4
"""Different augmentations of each sample; each costs a pass of the teacher over the training set, once."""

_DIGEST_BYTES = 1 << 26
"""Bytes of a dataset that its digest looks at; spread evenly over larger ones."""


MOST_CACHED_BYTES = 1 << 30
"""Of a teacher's answers to one view of a set."""

HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random shifts by up to `shift` pixels and mirroring, fixed per view and sample.

    A view is one draw for the whole training set, and does not depend on the seed of the training:
    so that the teacher's answers serve every later training of the same data.
    """

    shift: int = 0
    flip: bool = False

    def __str__(self) -> str:
        """Return the words for a note."""
        if self.is_none:
            return "no augmentation"
        return f"shifts of up to {self.shift} pixels" + (" and mirroring" if self.flip else "")

    @property
    def is_none(self) -> bool:
        """Whether samples stay as they are."""
        return self.shift == 0 and not self.flip

    def apply(self, inputs: FloatArray, indices: IntArray, view: int, count: int) -> FloatArray:
        """Return the view of a batch of images, shape (n, C, H, W); `indices` are those of the samples.

        What a shift uncovers repeats the edge: black margins cost some networks five points of accuracy
        at a single pixel. `count` is the size of the whole set.
        """
        if self.is_none:
            return inputs
        draw = _draws(view, count)[indices]
        steps = 2 * self.shift + 1
        offsets = np.minimum((draw[:, :2] * steps).astype(np.int64), steps - 1)
        flipped = (draw[:, 2] < 0.5) & self.flip
        height, width = inputs.shape[2:]
        edge = (self.shift, self.shift)
        padded = np.pad(inputs, ((0, 0), (0, 0), edge, edge), mode="edge")
        result = np.empty_like(inputs)
        for i, (top, left) in enumerate(offsets):
            part = padded[i, :, top : top + height, left : left + width]
            result[i] = part[:, :, ::-1] if flipped[i] else part
        return result


@functools.lru_cache(maxsize=2)
def _draws(view: int, count: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng([7919, view]).random((count, 3))


class Teacher:
    """Runs an original graph up to its distilled tensors in onnxruntime."""

    def __init__(self, *, graph: bytes, tensors: Sequence[str], threads: int) -> None:
        """Load the graph; `tensors` names what it answers, the one that labels are about first."""
        model = onnx.load_model_from_string(graph)
        shown = {output.name for output in model.graph.output}
        model.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in tensors if name not in shown
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # torch works in between on the same cores: spinning threads would take them from it
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            _with_output_types(model).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        self._input = self._session.get_inputs()[0].name
        self._tensors = list(tensors)
        self.shapes: Sequence[tuple[int, ...]] | None = None
        """Of a sample's answers, where they are to be other than the graph's; the sizes agree."""
        self.digest = hashlib.sha256(graph + "\n".join(tensors).encode()).hexdigest()

    def answers(self, inputs: FloatArray) -> tuple[FloatArray, ...]:
        """Return the distilled tensors of a batch, each of shape (n, ...)."""
        found = self._session.run(self._tensors, {self._input: inputs})
        if self.shapes is None:
            return tuple(found)
        return tuple(
            answer.reshape(len(answer), *shape)
            for answer, shape in zip(found, self.shapes, strict=True)
        )

    def logits(self, inputs: FloatArray) -> FloatArray:
        """Return the first distilled tensor of a batch, shape (n, ...)."""
        return self.answers(inputs)[0]


def open_teachers(graphs: Sequence[bytes], samples: Samples, *, threads: int) -> list[Teacher]:
    """Load teachers, the original first; all have to answer the same questions in the same shapes.

    Sizes of one do not count: answers of shape (n, 10, 1, 1) are taken for (n, 10). Fields of errors
    number the further teachers from 0.

    Raises:
        InvalidRequestError: A further teacher takes other inputs, or answers something else.
        UnsupportedError: The original does not take the samples.
    """
    teachers: list[Teacher] = []
    shapes: Sequence[tuple[int, ...]] = ()
    losses: Sequence[str] = ()
    for number, graph in enumerate(graphs, start=-1):
        targets = find_targets(graph, is_regression=samples.metric.is_error)
        names = [target.name for target in targets]
        teacher = Teacher(graph=graph, tensors=names, threads=threads)
        own_shapes = _answer_shapes(teacher, samples, number)
        own_losses = [target.loss for target in targets]
        if not teachers:
            shapes, losses = own_shapes, own_losses
        elif [_dense(shape) for shape in own_shapes] != [_dense(shape) for shape in shapes]:
            raise InvalidRequestError(
                f"a teacher answers in shapes {own_shapes}, the model in {shapes}",
                field=f"teachers[{number}]",
                remedy="give teachers for the same inputs and classes",
            )
        elif own_losses != losses:
            raise InvalidRequestError(
                "a teacher gives values where the model gives scores of classes, or the reverse",
                field=f"teachers[{number}]",
                remedy="give teachers that end in the same activation (Softmax, Sigmoid or none)",
            )
        else:
            teacher.shapes = shapes
        teachers.append(teacher)
    return teachers


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _answer_shapes(teacher: Teacher, samples: Samples, number: int) -> list[tuple[int, ...]]:
    """Return the shapes of what a teacher answers to one sample; -1 numbers the original."""
    try:
        answers = teacher.answers(samples.inputs([0]))
    except (InvalidArgument, Fail, RuntimeException) as error:
        if number < 0:
            raise UnsupportedError(
                "the original does not take the samples", field="dataset"
            ) from error
        raise InvalidRequestError(
            "a teacher does not take the samples",
            field=f"teachers[{number}]",
            remedy="give teachers for inputs of the same shape and preprocessing",
        ) from error
    return [answer.shape[1:] for answer in answers]


def _with_output_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give an output that was added by name its type; onnxruntime insists on one."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v.type for v in inferred.graph.value_info}
    for output in model.graph.output:
        if not output.HasField("type"):
            if output.name in types:
                output.type.CopyFrom(types[output.name])
            else:
                output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model


class TeacherCache:
    """Answers per view and sample in memory-mapped files, filled as they are asked for.

    Several processes may use the same folder: they write the same values. Values are float16 so that a
    result does not depend on whether it came from the file or from another batch size. Answers that
    would fill more than MOST_CACHED_BYTES per view (segmenters, detectors) are asked for each time.
    """

    def __init__(
        self, *, teacher: Teacher, train: Samples, augmentation: Augmentation, folder: Path
    ) -> None:
        """Open or create the files' folder."""
        self._teacher, self._train, self._augmentation = teacher, train, augmentation
        key = hashlib.sha256(
            f"{teacher.digest} {_samples_digest(train)} {augmentation}".encode()
        ).hexdigest()
        self._folder = folder / f"teacher-{key[:32]}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._views: dict[int, list[HalfArray] | None] = {}
        self.computed_count = 0

    def inputs(self, indices: IntArray, view: int) -> FloatArray:
        """Return the augmented inputs of some samples."""
        return self._augmentation.apply(
            self._train.inputs(indices), indices, view, len(self._train)
        )

    def answers(self, indices: IntArray, view: int, inputs: FloatArray) -> tuple[FloatArray, ...]:
        """Return the teacher's answers to some samples; `inputs` are what `inputs` returns for them."""
        stored = self._open(view, inputs)
        if stored is None:
            self.computed_count += len(indices)
            return tuple(_halved(fresh).astype(np.float32) for fresh in self._ask(inputs))
        missing = np.zeros(len(indices), dtype=bool)
        for array in stored:
            missing |= np.isnan(array[indices].reshape(len(indices), -1)).any(axis=1)
        if missing.any():
            for array, fresh in zip(stored, self._ask(inputs[missing]), strict=True):
                array[indices[missing]] = _halved(fresh)
            self.computed_count += int(missing.sum())
        return tuple(array[indices].astype(np.float32) for array in stored)

    def _ask(self, inputs: FloatArray) -> tuple[FloatArray, ...]:
        return self._teacher.answers(np.ascontiguousarray(inputs))

    def _open(self, view: int, inputs: FloatArray) -> list[HalfArray] | None:
        """Return the files of a view, or None where they would be too large."""
        if view not in self._views:
            shapes = [(len(self._train), *answer.shape[1:]) for answer in self._ask(inputs[:1])]
            is_small = 2 * sum(math.prod(shape) for shape in shapes) <= MOST_CACHED_BYTES
            self._views[view] = (
                [self._file(view, place, shape) for place, shape in enumerate(shapes)]
                if is_small
                else None
            )
        return self._views[view]

    def _file(self, view: int, place: int, shape: tuple[int, ...]) -> HalfArray:
        path = self._folder / f"view-{view}-{place}.npy"
        if not path.exists():
            draft = path.with_suffix(f".{id(self)}.{np.random.default_rng().integers(1 << 60)}")
            with draft.open("wb") as file:
                np.save(file, np.full(shape, np.nan, dtype=np.float16))
            draft.replace(path)
        return np.asanyarray(np.load(path, mmap_mode="r+"))


def _halved(values: FloatArray) -> HalfArray:
    """Return values as float16; beyond lies nothing that a softened softmax could tell apart."""
    return np.clip(np.nan_to_num(values), -60000, 60000).astype(np.float16)


def _samples_digest(samples: Samples) -> str:
    stored = samples.stored
    step = max(1, -(-stored.nbytes // _DIGEST_BYTES))
    facts: Sequence[Any] = (
        stored.shape, stored.dtype.str, samples.preprocess, samples.layout, samples.model_layout
    )  # fmt: skip
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(np.ascontiguousarray(stored[::step]).tobytes())
    return digest.hexdigest()
