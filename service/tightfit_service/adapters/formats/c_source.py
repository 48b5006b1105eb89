"""TFLite files as C source: a constant array with a header of everything that calling code needs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from tightfit_service.adapters.evaluation.litert_evaluator import (
    INPUT_LAYOUT_KEY,
    OUTPUT_LAYOUT_KEY,
    read_metadata,
)
from tightfit_service.adapters.formats.tflite_arena import activation_bytes
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.work.file_metadata import (
    LABELS_KEY,
    PREPROCESS_KEY,
    RECIPE_DIGEST_KEY,
    SEED_KEY,
    SOURCE_KEY,
    TARGET_KEY,
    VERSION_KEY,
)
from tightfit_service.domain.errors import InvalidModelError

HEADER_NAME, SOURCE_NAME = "model.h", "model.c"

_BYTES_PER_LINE = 12
_TYPES = {
    schema.TensorType.FLOAT32: ("float", 4),
    schema.TensorType.INT8: ("int8_t", 1),
    schema.TensorType.UINT8: ("uint8_t", 1),
    schema.TensorType.INT16: ("int16_t", 2),
    schema.TensorType.INT32: ("int32_t", 4),
    schema.TensorType.INT64: ("int64_t", 8),
    schema.TensorType.BOOL: ("uint8_t", 1),
}
_COMMENTED = (
    ("made by tightfit", VERSION_KEY),
    ("for the target", TARGET_KEY),
    ("from the model, sha-256", SOURCE_KEY),
    ("by the recipe, sha-256", RECIPE_DIGEST_KEY),
    ("with the seed", SEED_KEY),
)
_ARRAY = re.compile(rb"model_data\[MODEL_SIZE_BYTES\] = \{([^}]*)\};")
_BYTE = re.compile(rb"0x([0-9a-f]{2})\b")

_HEADER = """\
/*
 * A neural network as a TFLite file in an array, for LiteRT for Microcontrollers (TFLM) and others.
 *
{comment}
 *
 * The tool that wrote this file claims no rights in it: its licence is that of the model in it.
 *
 * An input value is (x * PREPROCESS_SCALE - PREPROCESS_MEAN) / PREPROCESS_STD per channel, where those
 * are defined; an integer tensor holds round(value / SCALE) + ZERO_POINT.
 */
#ifndef MODEL_H_
#define MODEL_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{definitions}

/* The file. Constants in it are read in place, so it is aligned to 16 bytes. */
extern const unsigned char model_data[MODEL_SIZE_BYTES];
extern const unsigned int model_data_len;

#ifdef __cplusplus
}}
#endif

#endif /* MODEL_H_ */
"""

_SOURCE = """\
#include "model.h"

/* Define MODEL_ATTRIBUTES to place the array in a section of your own; keep it aligned to 16 bytes. */
#ifndef MODEL_ATTRIBUTES
#if defined(__cplusplus) && __cplusplus >= 201103L
#define MODEL_ATTRIBUTES alignas(16)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define MODEL_ATTRIBUTES _Alignas(16)
#elif defined(__GNUC__) || defined(__clang__) || defined(__CC_ARM)
#define MODEL_ATTRIBUTES __attribute__((aligned(16)))
#else
#error "define MODEL_ATTRIBUTES as what this compiler calls an alignment of 16 bytes"
#endif
#endif

MODEL_ATTRIBUTES const unsigned char model_data[MODEL_SIZE_BYTES] = {
%s
};

const unsigned int model_data_len = MODEL_SIZE_BYTES;
"""


@dataclass(frozen=True, kw_only=True)
class _End:
    """An input or output as the header tells of it."""

    prefix: str
    tensor: Any
    layout: str
    preprocess: Mapping[str, Any]


def c_source(data: bytes, metadata: Mapping[str, str]) -> dict[str, bytes]:
    """Return the header and the source of a TFLite file, for C99, C11 and C++11 compilers.

    The header tells of size, memory for activations, operators, inputs, outputs, preprocessing and
    names of classes; `metadata` is what `application.file_metadata` says. None of it takes flash
    unless it is used.
    """
    file = TfliteFile(data)
    lines = [*_general(file, data, metadata)]
    for end in _ends(file, data, metadata):
        lines += ["", *_described(end)]
    names = json.loads(metadata.get(LABELS_KEY, "[]"))
    if names:
        lines += ["", f"#define MODEL_CLASS_COUNT {len(names)}"]
        lines += [f"#define MODEL_CLASS_NAMES {{{', '.join(map(_text, names))}}}"]
    comment = [
        f" * {label}: {_commented(metadata[key])}" for label, key in _COMMENTED if key in metadata
    ]
    comment.append(f" * operators: {', '.join(_operators(file))}")
    header = _HEADER.format(comment="\n".join(comment), definitions="\n".join(lines))
    rows = (
        ", ".join(f"0x{byte:02x}" for byte in data[start : start + _BYTES_PER_LINE])
        for start in range(0, len(data), _BYTES_PER_LINE)
    )
    source = _SOURCE % ",\n".join(f"  {row}" for row in rows)
    return {HEADER_NAME: header.encode(), SOURCE_NAME: source.encode()}


def array_of(source: bytes) -> bytes:
    """Return the bytes of the array in a source that `c_source` wrote.

    Raises:
        InvalidModelError: There is none.
    """
    found = _ARRAY.search(source)
    data = bytes(int(byte, 16) for byte in _BYTE.findall(found.group(1))) if found else b""
    if not data:
        raise InvalidModelError(
            f"{SOURCE_NAME} holds no array model_data",
            field="model",
            remedy="give the files as tightfit exported them",
        )
    return data


def _general(file: TfliteFile, data: bytes, metadata: Mapping[str, str]) -> Iterator[str]:
    yield f"#define MODEL_SIZE_BYTES {len(data)}"
    yield "/* Inputs, outputs and what is between them; the interpreter's own structures come on top. */"
    yield f"#define MODEL_ACTIVATION_BYTES {activation_bytes(file)}"
    yield f"#define MODEL_OPERATOR_COUNT {len(_operators(file))}"
    for name, key in (("SOURCE", SOURCE_KEY), ("RECIPE", RECIPE_DIGEST_KEY)):
        if key in metadata:
            yield f"#define MODEL_{name}_SHA256 {_text(metadata[key])}"
    yield f"#define MODEL_INPUT_COUNT {len(file.graph.inputs)}"
    yield f"#define MODEL_OUTPUT_COUNT {len(file.graph.outputs)}"


def _ends(file: TfliteFile, data: bytes, metadata: Mapping[str, str]) -> Iterator[_End]:
    layouts = read_metadata(data)
    preprocess = json.loads(metadata.get(PREPROCESS_KEY, "{}"))
    only = preprocess.get("") if len(file.graph.inputs) == 1 else None
    sides = (
        ("INPUT", file.graph.inputs, layouts.get(INPUT_LAYOUT_KEY, "")),
        ("OUTPUT", file.graph.outputs, layouts.get(OUTPUT_LAYOUT_KEY, "")),
    )
    for side, tensors, words in sides:
        for place, index in enumerate(tensors):
            tensor = file.graph.tensors[index]
            own = preprocess.get(tensor.name.decode(), only) if side == "INPUT" else None
            yield _End(
                prefix=f"MODEL_{side}_{place}",
                tensor=tensor,
                layout=(words.split(",") + [""] * len(tensors))[place],
                preprocess=own or {},
            )


def _described(end: _End) -> Iterator[str]:
    tensor = end.tensor
    shape = [int(size) for size in (tensor.shape if tensor.shape is not None else [])]
    kind, size = _TYPES.get(tensor.type, ("unsigned char", 1))
    count = math.prod(shape)
    yield f"#define {end.prefix}_NAME {_text(tensor.name.decode())}"
    yield f"#define {end.prefix}_TYPE {kind}"
    yield f"#define {end.prefix}_RANK {len(shape)}"
    yield f"#define {end.prefix}_SHAPE {_list(shape)}"
    yield f"#define {end.prefix}_ELEMENTS {count}"
    yield f"#define {end.prefix}_BYTES {count * size}"
    if end.layout == "NHWC":
        yield f'#define {end.prefix}_LAYOUT "NHWC"'
    quantization = tensor.quantization
    if kind != "float" and quantization is not None and quantization.scale is not None:
        yield f"#define {end.prefix}_SCALE {_number(float(quantization.scale[0]))}"
        yield f"#define {end.prefix}_ZERO_POINT {int(quantization.zeroPoint[0])}"
    if end.preprocess:
        yield f"#define {end.prefix}_PREPROCESS_SCALE {_number(end.preprocess['scale'])}"
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            values = end.preprocess[name] or [neutral]
            yield f"#define {end.prefix}_PREPROCESS_{name.upper()} {_list(map(_number, values))}"


def _operators(file: TfliteFile) -> list[str]:
    return sorted({file.operator_name(item) for item in file.graph.operators})


def _list(values: Iterator[str] | Sequence[int]) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"


def _number(value: float) -> str:
    """Return a float literal; nine digits tell every float from its neighbours."""
    text = f"{value:.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"


def _text(value: str) -> str:
    """Return a string literal in ASCII; three octal digits end where a further digit could begin."""
    plain = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in str(value).encode()
    )
    return f'"{"".join(plain)}"'


def _commented(value: str) -> str:
    """Return a value that cannot end the comment it stands in."""
    return re.sub(r"[^\x20-\x7e]", " ", value).replace("*/", "* /")
