"""The catalogue of hardware targets: YAML files, one per target, and defaults per class of core and accelerator."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tightfit_service.adapters.targets.description import NESTED, check_name, read_description
from tightfit_service.domain.errors import InvalidTargetError, NotFoundError
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it: every process that knows targets reads the whole catalogue."""

FOLDER = Path(__file__).with_name("catalogue")
CORE_CLASSES = Path(__file__).with_name("classes.yaml")
ACCELERATOR_CLASSES = Path(__file__).with_name("accelerators.yaml")

_NEVER_ASSUMED = frozenset(
    {
        "sources",
        "channel_multiple",
        "number_formats",
        "output_format",
        "memory.word_bytes",
        "memory.alignment_bytes",
        "accelerator.operators",
        "accelerator.fallback",
    }
)
"""What comes from the class without making an estimate less certain."""
_ASSUMED_AS: Mapping[str, str] = {"runtime.name": "runtime", "runtime.version": "runtime"}
_OTHER_SPELLINGS: Mapping[str, str] = {
    "cortex-m4f": "cortex-m4",
    "cortex-m0plus": "cortex-m0+",
    "x86_64": "x86-64",
}


class YamlTargetCatalogue:
    """The targets of a folder of YAML files (port `TargetCatalogue`). Read once, then immutable."""

    def __init__(
        self,
        *,
        folder: Path = FOLDER,
        classes_path: Path = CORE_CLASSES,
        accelerators_path: Path = ACCELERATOR_CLASSES,
    ) -> None:
        self._folder = folder
        self._classes_path = classes_path
        self._accelerators_path = accelerators_path

    @property
    def cores(self) -> Sequence[str]:
        """Classes of cores that a description can name."""
        return tuple(self._classes)

    @cached_property
    def _classes(self) -> Mapping[str, Mapping[str, Any]]:
        return _read_classes(self._classes_path)

    @cached_property
    def _accelerators(self) -> Mapping[str, Mapping[str, Any]]:
        return _read_classes(self._accelerators_path)

    @cached_property
    def _targets(self) -> Mapping[str, HardwareSpec]:
        targets = {}
        for path in sorted(self._folder.glob("*.yaml")):
            spec = self.complete(_read_yaml(path))
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
        """Return a full spec from a partial description, the rest taken from its classes.

        Keys are those of `HardwareSpec`, nested as in the catalogue's files. `core` is needed, and
        `accelerator.kind` where there is one; `name` and `display_name` default to the core.

        Raises:
            InvalidTargetError: Unknown keys, impossible figures, or a core that no class describes.
        """
        given = read_description(partial)
        core = self._core(given.pop("core", ""))
        inherited = self._inherited(core, given.get("accelerator"))
        name = given.pop("name", "") or re.sub(r"[^a-z0-9]+", "-", f"custom-{core}").strip("-")
        check_name(name)
        display_name = given.pop("display_name", "") or name
        assumed = set(given.pop("assumed_fields", ()))
        values: dict[str, Any] = {}
        for key in {**inherited, **given}:
            if key in NESTED:
                own = given.get(key, {})
                rest = {k: v for k, v in inherited.get(key, {}).items() if k not in own}
                if not (key == "runtime" and own):
                    assumed |= {f"{key}.{inner}" for inner in rest}
                values[key] = NESTED[key](**rest, **own)
            elif key in given:
                values[key] = given[key]
            else:
                values[key] = inherited[key]
                assumed.add(key)
        named = {_ASSUMED_AS.get(field, field) for field in assumed - _NEVER_ASSUMED}
        return HardwareSpec(
            name=name,
            display_name=display_name,
            core=core,
            assumed_fields=tuple(sorted(named)),
            **values,
        )

    def _core(self, text: str) -> str:
        core = text.lower().strip()
        core = _OTHER_SPELLINGS.get(core, core)
        if core in self._classes:
            return core
        near = difflib.get_close_matches(core, self._classes, n=3, cutoff=0.4) or list(
            self._classes
        )
        stated = f"no class describes the core {core!r}" if core else "a target needs its core"
        raise InvalidTargetError(
            stated, field="target.core", remedy="give one of: " + ", ".join(near)
        )

    def _inherited(self, core: str, accelerator: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what the class of the core gives, overruled by that of the accelerator."""
        inherited = dict(self._classes[core])
        if accelerator is None:
            return inherited
        if "kind" not in accelerator:
            raise InvalidTargetError(
                "an accelerator needs its kind",
                field="target.accelerator.kind",
                remedy="give one of: " + ", ".join(self._accelerators),
            )
        of_kind = self._accelerators[accelerator["kind"]]
        inherited.update({key: value for key, value in of_kind.items() if key != "sources"})
        figures = dict(of_kind.get("accelerator", {}))
        if accelerator.keys() & {"tops", "macs_per_cycle"}:
            # a rate given in either unit stands for itself, and TOPS need no clock
            figures.pop("macs_per_cycle", None)
            figures.pop("tops", None)
        if "macs_per_cycle" not in {**figures, **accelerator}:
            figures.pop("clock_mhz", None)
        inherited["accelerator"] = figures
        rates = {**figures, **accelerator}
        offered = {**rates.get("macs_per_cycle", {}), **rates.get("tops", {})}
        inherited["number_formats"] = tuple(f for f in NumberFormat if f in offered)
        return inherited


def _read_classes(path: Path) -> Mapping[str, Mapping[str, Any]]:
    return {name: read_description(values) for name, values in _read_yaml(path).items()}


def _read_yaml(path: Path) -> Mapping[str, Any]:
    document: Mapping[str, Any] = yaml.load(
        path.read_text(encoding="utf-8"),
        Loader=_LOADER,  # noqa: S506  # nosec B506  # a safe one either way
    )
    return document
