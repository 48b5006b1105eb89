"""Descriptions of targets as users write them: checked key by key, turned into plain typed values."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from tightfit_service.domain.errors import InvalidTargetError
from tightfit_service.domain.hardware import (
    FIGURES,
    Accelerator,
    AcceleratorKind,
    Fallback,
    HardwareSpec,
    Memory,
    ModelFormat,
    NumberFormat,
    Power,
    Runtime,
    impossible_figure,
)
from tightfit_service.domain.network import OperatorKind

NESTED: Mapping[str, type] = {
    "memory": Memory,
    "runtime": Runtime,
    "power": Power,
    "accelerator": Accelerator,
}
"""Keys that hold mappings, and the values that these become."""

MAX_TEXT = 500
MAX_ITEMS = 100
"""Characters of a text and items of a list: more is no description but an attack on memory."""

_TEXT_LISTS = frozenset({"isa_features", "isp_features", "sources", "assumed_fields"})
_WORD_LISTS: Mapping[str, type[enum.StrEnum]] = {
    "number_formats": NumberFormat,
    "accelerator.operators": OperatorKind,
}
_WORDS: Mapping[str, type[enum.StrEnum]] = {
    "output_format": ModelFormat,
    "accelerator.kind": AcceleratorKind,
    "accelerator.fallback": Fallback,
}
_RATES = frozenset({"accelerator.macs_per_cycle", "accelerator.tops"})
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

_Word = TypeVar("_Word", bound=enum.StrEnum)


def read_description(partial: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a description gives, with its words, lists and numbers as the domain has them.

    Keys are those of `HardwareSpec`, nested as in the catalogue's files; None means not given.

    Raises:
        InvalidTargetError: Not a mapping, an unknown key, a value of the wrong kind, or a figure
            that no device has. Names the field and the remedy.
    """
    if not isinstance(partial, Mapping):
        raise InvalidTargetError(
            "a target description is a mapping of fields",
            field="target",
            remedy="write `core: cortex-m4` and the fields that you know",
        )
    known = [item.name for item in fields(HardwareSpec)]
    result: dict[str, Any] = {}
    for key, value in partial.items():
        if key not in known:
            raise _unknown_key(f"target.{key}", str(key), known)
        if value is None:
            continue
        result[key] = _nested(key, value) if key in NESTED else _value(key, value)
    return result


def check_name(name: str) -> None:
    """Refuse a name of a target that cannot be part of a resource name.

    Raises:
        InvalidTargetError: Other characters than lower-case letters, digits and dashes, or too long.
    """
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-")
        raise InvalidTargetError(
            f"target name {name!r} has other characters than lower-case letters, digits and dashes",
            field="target.name",
            remedy=f"rename it, for instance {better or 'my-target'!r}",
        )


def _nested(key: str, value: Any) -> dict[str, Any]:
    known = [item.name for item in fields(NESTED[key])]
    if not isinstance(value, Mapping):
        raise InvalidTargetError(
            f"target.{key} is {value!r}, not a mapping",
            field=f"target.{key}",
            remedy="give its fields: " + ", ".join(known),
        )
    result: dict[str, Any] = {}
    for inner, given in value.items():
        if inner not in known:
            raise _unknown_key(f"target.{key}.{inner}", str(inner), known)
        if given is not None:
            result[inner] = _value(f"{key}.{inner}", given)
    return result


def _unknown_key(path: str, key: str, known: Sequence[str]) -> InvalidTargetError:
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
    remedy = f"did you mean {' or '.join(near)}?" if near else "known are: " + ", ".join(known)
    return InvalidTargetError(f"unknown key {key!r}", field=path, remedy=remedy)


def _value(path: str, value: Any) -> Any:
    if path in _RATES:
        return _rates(path, value)
    if path in _WORD_LISTS:
        kind = _WORD_LISTS[path]
        return tuple(_word(kind, item, path) for item in _list(path, value))
    if path in _TEXT_LISTS:
        return tuple(_text(path, item) for item in _list(path, value))
    if path in _WORDS:
        return _word(_WORDS[path], value, path)
    if path in FIGURES:
        return _number(path, value)
    return _text(path, value)


def _text(path: str, value: Any) -> str:
    text = str(value)
    if len(text) > MAX_TEXT or not text.isprintable():
        raise InvalidTargetError(
            f"target.{path} is longer than {MAX_TEXT} characters or has some that cannot be printed",
            field=f"target.{path}",
            remedy="write one short line of text",
        )
    return text


def _list(path: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidTargetError(
            f"target.{path} is {value!r}, not a list",
            field=f"target.{path}",
            remedy="write a list, such as [dsp, fpu]",
        )
    if len(value) > MAX_ITEMS:
        raise InvalidTargetError(
            f"target.{path} has {len(value)} items",
            field=f"target.{path}",
            remedy=f"give at most {MAX_ITEMS}",
        )
    return value


def _rates(path: str, value: Any) -> dict[NumberFormat, float]:
    if not isinstance(value, Mapping):
        raise InvalidTargetError(
            f"target.{path} is {value!r}, not a mapping",
            field=f"target.{path}",
            remedy="give the rate by number format, such as {int8: 4}",
        )
    return {_word(NumberFormat, key, path): _number(path, rate) for key, rate in value.items()}


def _number(path: str, value: Any) -> float | int:
    figures = FIGURES[path]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not figures.holds(value):
        raise impossible_figure(path, value, figures)
    return int(value) if figures.whole else float(value)


def _word(kind: type[_Word], text: Any, path: str) -> _Word:
    try:
        return kind(str(text).lower())
    except ValueError:
        raise InvalidTargetError(
            f"{text!r} is not one of the known values of {path}",
            field=f"target.{path}",
            remedy="give one of: " + ", ".join(member.value for member in kind),
        ) from None
