"""The catalogue of hardware targets: YAML files, one per target, and defaults per core class."""

from __future__ import annotations

import difflib
import enum
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tightfit_service.domain.errors import InvalidTargetError, NotFoundError
from tightfit_service.domain.hardware import (
    HardwareSpec,
    Memory,
    ModelFormat,
    NumberFormat,
    Power,
    Runtime,
)

FOLDER = Path(__file__).with_name("catalogue")
CLASSES = Path(__file__).with_name("classes.yaml")

_NESTED: Mapping[str, type] = {"memory": Memory, "runtime": Runtime, "power": Power}
_LISTS = frozenset({"isa_features", "number_formats", "isp_features", "sources", "assumed_fields"})
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "clock_mhz": (0.0, 10_000.0),
    "core_count": (0, 1_024),
    "channel_multiple": (0, 1_024),
    "memory.ram_bytes": (0, 2**44),
    "memory.flash_bytes": (0, 2**48),
    "memory.ram_bandwidth_mb_s": (0.0, 1e7),
    "memory.cache_bytes": (-1, 2**32),
    "memory.word_bytes": (0, 1_024),
    "power.active_mw": (0.0, 1e6),
    "power.idle_mw": (0.0, 1e6),
    "power.supply_v": (0.0, 1_000.0),
}
"""Figures and the range (above the first, at most the second) that some device may have."""
_INTEGERS = frozenset(
    {
        "core_count",
        "channel_multiple",
        "memory.ram_bytes",
        "memory.flash_bytes",
        "memory.cache_bytes",
        "memory.word_bytes",
    }
)
_NEVER_ASSUMED = frozenset(
    {"sources", "channel_multiple", "number_formats", "output_format", "memory.word_bytes"}
)
"""Figures that come from the class without making an estimate less certain."""
_ASSUMED_AS: Mapping[str, str] = {"runtime.name": "runtime", "runtime.version": "runtime"}
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class YamlTargetCatalogue:
    """The targets of a folder of YAML files (port `TargetCatalogue`). Read once, then immutable."""

    def __init__(self, *, folder: Path = FOLDER, classes_path: Path = CLASSES) -> None:
        self._folder = folder
        self._classes_path = classes_path

    @cached_property
    def _classes(self) -> Mapping[str, Mapping[str, Any]]:
        document: dict[str, dict[str, Any]] = yaml.safe_load(
            self._classes_path.read_text(encoding="utf-8")
        )
        return document

    @cached_property
    def _targets(self) -> Mapping[str, HardwareSpec]:
        targets = {}
        for path in sorted(self._folder.glob("*.yaml")):
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
            spec = self.complete(document)
            if spec.name != path.stem:
                raise InvalidTargetError(
                    f"{path.name} describes a target named {spec.name!r}",
                    field="target.name",
                    remedy="name the file after the target",
                )
            targets[spec.name] = spec
        return targets

    def get(self, name: str) -> HardwareSpec:
        """Return a target.

        Raises:
            NotFoundError: No such target; the remedy offers the nearest names.
        """
        target = self._targets.get(name)
        if target is None:
            wanted = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            near = difflib.get_close_matches(wanted, self._targets, n=4, cutoff=0.5)
            near += [n for n in self._targets if wanted and wanted in n and n not in near][:3]
            offer = f"did you mean {', '.join(near)}?" if near else "list the targets first"
            raise NotFoundError(
                f"there is no hardware target named {name!r}", field="hardware_target", remedy=offer
            )
        return target

    def list(self) -> Sequence[HardwareSpec]:
        """Return all targets by name."""
        return tuple(self._targets[name] for name in sorted(self._targets))

    def complete(self, partial: Mapping[str, Any]) -> HardwareSpec:
        """Return a full spec from a partial description, the rest taken from the core's class.

        Keys are those of `HardwareSpec`, nested as in the catalogue's files. `core` is needed;
        `name` and `display_name` default to it.

        Raises:
            InvalidTargetError: Unknown keys, impossible figures, or a core that no class describes.
        """
        if not isinstance(partial, Mapping):
            raise InvalidTargetError(
                "a target description is a mapping of fields",
                field="target",
                remedy="write `core: cortex-m4` and the fields that you know",
            )
        _check_keys(partial)
        core = self._core(partial)
        given = _normalised(partial)
        inherited = self._classes[core]
        name = str(given.pop("name", "") or re.sub(r"[^a-z0-9]+", "-", f"custom-{core}").strip("-"))
        if not _NAME.fullmatch(name):
            raise InvalidTargetError(
                f"target name {name!r} has other characters than lower-case letters, digits and dashes",
                field="target.name",
                remedy="rename it, for instance " + repr(_as_name(name)),
            )
        display_name = str(given.pop("display_name", "") or name)
        given.pop("core", None)
        assumed = set(given.pop("assumed_fields", ()))
        values: dict[str, Any] = {}
        for key, value in inherited.items():
            if key in _NESTED:
                nested = {**value, **given.get(key, {})}
                assumed |= {
                    _ASSUMED_AS.get(f"{key}.{inner}", f"{key}.{inner}")
                    for inner in value
                    if inner not in given.get(key, {}) and not (key == "runtime" and key in given)
                }
                values[key] = nested
            elif key not in given:
                values[key] = value
                assumed.add(key)
        for key, value in given.items():
            values.setdefault(key, value)
        return _build(
            name=name,
            display_name=display_name,
            core=core,
            values=values,
            assumed=tuple(sorted(assumed - _NEVER_ASSUMED)),
        )

    def _core(self, partial: Mapping[str, Any]) -> str:
        core = str(partial.get("core") or "").lower().strip()
        core = {"cortex-m4f": "cortex-m4", "cortex-m0plus": "cortex-m0+", "x86_64": "x86-64"}.get(
            core, core
        )
        if core in self._classes:
            return core
        near = difflib.get_close_matches(core, self._classes, n=3, cutoff=0.4) or list(
            self._classes
        )
        stated = f"no class describes the core {core!r}" if core else "a target needs its core"
        raise InvalidTargetError(
            stated, field="target.core", remedy="give one of: " + ", ".join(near)
        )


def _check_keys(partial: Mapping[str, Any]) -> None:
    known = {f.name: f for f in fields(HardwareSpec)}
    for key, value in partial.items():
        if key not in known:
            raise _unknown_key(f"target.{key}", str(key), list(known))
        if key in _NESTED:
            if not isinstance(value, Mapping):
                raise InvalidTargetError(
                    f"target.{key} is {value!r}, not a mapping",
                    field=f"target.{key}",
                    remedy="give its fields: " + ", ".join(f.name for f in fields(_NESTED[key])),
                )
            inner_known = [f.name for f in fields(_NESTED[key])]
            for inner in value:
                if inner not in inner_known:
                    raise _unknown_key(f"target.{key}.{inner}", str(inner), inner_known)


def _unknown_key(path: str, key: str, known: Sequence[str]) -> InvalidTargetError:
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
    remedy = f"did you mean {' or '.join(near)}?" if near else "known are: " + ", ".join(known)
    return InvalidTargetError(f"unknown key {key!r}", field=path, remedy=remedy)


def _normalised(partial: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description with numbers as numbers and lists as tuples; None means not given."""
    result: dict[str, Any] = {}
    for key, value in partial.items():
        if value is None:
            continue
        if key in _NESTED:
            result[key] = {
                inner: _scalar(f"{key}.{inner}", given)
                for inner, given in value.items()
                if given is not None
            }
        elif key in _LISTS:
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InvalidTargetError(
                    f"target.{key} is {value!r}, not a list",
                    field=f"target.{key}",
                    remedy="write a list, such as [dsp, fpu]",
                )
            result[key] = tuple(str(item) for item in value)
        else:
            result[key] = _scalar(key, value)
    return result


def _scalar(path: str, value: Any) -> Any:
    if path not in _NUMBERS:
        return str(value)
    above, most = _NUMBERS[path]
    number: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    if number is None or not math.isfinite(number) or not above < number <= most:
        raise InvalidTargetError(
            f"target.{path} is {value!r}, outside ({above:g}, {most:g}]",
            field=f"target.{path}",
            remedy="give the figure from the data sheet as a number in the unit that ends the field's name",
        )
    return int(number) if path in _INTEGERS else number


def _build(
    *, name: str, display_name: str, core: str, values: dict[str, Any], assumed: tuple[str, ...]
) -> HardwareSpec:
    for key, kind in _NESTED.items():
        values[key] = kind(**values[key])
    values["number_formats"] = tuple(
        _member(NumberFormat, text, "number_formats") for text in values["number_formats"]
    )
    values["output_format"] = _member(ModelFormat, values["output_format"], "output_format")
    for key in _LISTS & values.keys():
        values[key] = tuple(values[key])
    known = {f.name for f in fields(HardwareSpec) if f.default is not MISSING or f.name in values}
    return HardwareSpec(
        name=name,
        display_name=display_name,
        core=core,
        assumed_fields=assumed,
        **{k: v for k, v in values.items() if k in known},
    )


def _member(kind: type[enum.StrEnum], text: Any, key: str) -> Any:
    try:
        return kind(str(text).lower())
    except ValueError:
        raise InvalidTargetError(
            f"{text!r} is not one of the known values of {key}",
            field=f"target.{key}",
            remedy="give one of: " + ", ".join(member.value for member in kind),
        ) from None


def _as_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63] or "my-target"
