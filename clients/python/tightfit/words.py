"""Enum values of the contract as the short lower-case words that people and files use."""

from __future__ import annotations

import difflib
from typing import Any

from tightfit.errors import InvalidInputError
from tightfit.v1 import hardware_pb2, job_pb2, metrics_pb2, trial_pb2

QUANTITIES = ("accuracy", "latency", "energy", "ram", "size")
"""What can be made best; the size of the download can only be limited."""
FORMATS = ("tflite", "onnx", "c_array", "openvino", "executorch", "vela")
"""Formats that results can be asked for in."""
FILE_SUFFIXES = {"executorch": "pte"}
"""Of files in formats that are not called by their suffix."""
FILE_SETS = {
    "c_array": ("model.h", "model.c"),
    "openvino": ("model.xml", "model.bin"),
    "vela": ("model_vela.tflite", "model.tflite"),
}
"""Of formats that are several files: what these are called."""
TECHNIQUES = (
    "structured_pruning",
    "low_rank",
    "precision",
    "resolution",
    "depth_pruning",
    "sparsity",
    "clustering",
)
METRICS = {
    "top1": "share of samples whose highest score is that of their label",
    "top5": "share of samples whose label is among the five highest scores",
    "f1": "mean over the classes of the harmonic mean of precision and recall",
    "auc": "area under the receiver operating characteristic, mean over the classes",
    "miou": "mean over the classes of intersection over union",
    "mse": "1 - mean squared error / variance of the labels",
    "mae": "1 - mean absolute error / that of always answering the median",
    "agreement": "share of answers that are those of the model as it came",
    "sqnr": "1 - squared difference to the outputs of the model as it came / their square",
}
"""What accuracy means by the metric of the dataset: a fraction up to 1, higher is better."""
IMPORTANCES = ("taylor", "fisher", "magnitude")
"""What the channels to remove may be chosen by."""
VERIFICATIONS = ("none", "if-available", "required")
"""Whether candidates are measured on a device before the winner is declared."""


def quantity_word(value: int) -> str:
    """Return `latency` for QUANTITY_LATENCY."""
    return _word(metrics_pb2.Quantity, value, "QUANTITY_")


def quantity_value(word: str) -> metrics_pb2.Quantity.ValueType:
    """Return QUANTITY_LATENCY for `latency`. Raises InvalidInputError for an unknown word."""
    check_word(word, QUANTITIES, field="--objective")
    return metrics_pb2.Quantity.Value(f"QUANTITY_{word.upper()}")


def format_word(value: int) -> str:
    """Return `tflite` for MODEL_FORMAT_TFLITE, "" for the unspecified one."""
    return _word(hardware_pb2.ModelFormat, value, "MODEL_FORMAT_") if value else ""


def format_value(word: str) -> hardware_pb2.ModelFormat.ValueType:
    """Return MODEL_FORMAT_TFLITE for `tflite`. Raises InvalidInputError for an unknown word."""
    check_word(word, FORMATS, field="--format")
    return hardware_pb2.ModelFormat.Value(f"MODEL_FORMAT_{word.upper()}")


def verification_value(word: str) -> job_pb2.Verification.ValueType:
    """Return VERIFICATION_REQUIRED for `required`. Raises InvalidInputError for an unknown word."""
    check_word(word, VERIFICATIONS, field="--verify")
    return job_pb2.Verification.Value(f"VERIFICATION_{word.upper().replace('-', '_')}")


def verification_word(value: int) -> str:
    """Return `required` for VERIFICATION_REQUIRED, `none` for the unspecified one."""
    return (
        _word(job_pb2.Verification, value, "VERIFICATION_").replace("_", "-") if value else "none"
    )


def importance_value(word: str) -> job_pb2.ImportanceCriterion.ValueType:
    """Return IMPORTANCE_CRITERION_FISHER for `fisher`. Raises InvalidInputError for an unknown word."""
    check_word(word, IMPORTANCES, field="--importance")
    return job_pb2.ImportanceCriterion.Value(f"IMPORTANCE_CRITERION_{word.upper()}")


def importance_word(value: int) -> str:
    """Return `fisher` for IMPORTANCE_CRITERION_FISHER, "" for the unspecified one."""
    return _word(job_pb2.ImportanceCriterion, value, "IMPORTANCE_CRITERION_") if value else ""


def number_format_word(value: int) -> str:
    """Return `int8` for NUMBER_FORMAT_INT8."""
    return _word(hardware_pb2.NumberFormat, value, "NUMBER_FORMAT_")


def job_state_word(value: int) -> str:
    """Return `SUCCEEDED` for STATE_SUCCEEDED."""
    return _word(job_pb2.CompressionJob.State, value, "STATE_").upper()


def event_kind_word(value: int) -> str:
    """Return `stage` for KIND_STAGE."""
    return _word(job_pb2.JobEvent.Kind, value, "KIND_")


def trial_role_word(value: int) -> str:
    """Return `finalist` for ROLE_FINALIST."""
    return _word(trial_pb2.Trial.Role, value, "ROLE_")


def trial_state_word(value: int) -> str:
    """Return `completed` for STATE_COMPLETED."""
    return _word(trial_pb2.Trial.State, value, "STATE_")


def check_word(word: str, offered: tuple[str, ...], *, field: str) -> None:
    """Raise InvalidInputError unless the word is offered; names the nearest one."""
    if word not in offered:
        near = difflib.get_close_matches(word, offered, n=1)
        listed = ", ".join(offered)
        remedy = f"did you mean {near[0]!r}? offered: {listed}" if near else f"offered: {listed}"
        raise InvalidInputError(f"{word!r} is not offered", field=field, remedy=remedy)


def _word(enum: Any, value: int, prefix: str) -> str:
    """Return a value's name without its prefix; values of a newer server as their number."""
    if value not in enum.values():
        return str(value)
    name: str = enum.Name(value)
    return name.removeprefix(prefix).lower()
