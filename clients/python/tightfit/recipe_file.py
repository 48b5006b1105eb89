"""`recipe.json`: read, checked, and compared with another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from tightfit.errors import InvalidInputError
from tightfit.model_metadata import RECIPE_DIGEST_KEY, RECIPE_KEY, read_metadata
from tightfit.v1 import recipe_pb2
from tightfit.words import FORMATS, check_word, format_value

_KEYS = {
    "version": int,
    "source_digest": str,
    "seed": int,
    "target": str,
    "output_format": str,
    "steps": list,
    "tool_versions": dict,
    "architecture": list,
}
_STEP_KEYS = ("pass_name", "parameters")
_BITS = {"version": 32, "seed": 64}
"""Of the numbers, in messages."""
_REMEDY = "use the recipe.json that `tightfit compress -o DIR` wrote"
_MAX_BYTES = 64 << 20
_MODEL_SUFFIXES = (".tflite", ".onnx")
_LONG_LIST = 8


def read_recipe_file(path: Path) -> recipe_pb2.Recipe:
    """Return the recipe in a file: a recipe's own, or the TFLite or ONNX file that it led to.

    Raises:
        InvalidInputError: The file cannot be read, is not JSON, or is no recipe; says which key.
    """
    return recipe_of(read_content(path), file=str(path))


def read_content(path: Path) -> dict[str, Any]:
    """Return a recipe file's content, checked for its keys and their kinds.

    Raises:
        InvalidInputError: As `read_recipe_file`.
    """
    try:
        if path.suffix.lower() not in _MODEL_SUFFIXES and path.stat().st_size > _MAX_BYTES:
            raise InvalidInputError(
                f"{path} is too large for a recipe", field=str(path), remedy=_REMEDY
            )
        is_model = path.suffix.lower() in _MODEL_SUFFIXES
        content = json.loads(_inside(path) if is_model else path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"cannot read {path}: {error.strerror or error}",
            field=str(path),
            remedy="check the path",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{path} is not JSON: {error}", field=str(path), remedy=_REMEDY
        ) from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} is not a recipe", field=str(path), remedy=_REMEDY)
    for key, value in content.items():
        if key not in _KEYS:
            raise InvalidInputError(
                f"{path} has the key {key!r}, which recipes do not have", field=key, remedy=_REMEDY
            )
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise InvalidInputError(
                f"{key} of {path} is not a {_KEYS[key].__name__}", field=key, remedy=_REMEDY
            )
    for key in ("version", "steps", "output_format"):
        if key not in content:
            raise InvalidInputError(f"{path} has no {key}", field=key, remedy=_REMEDY)
    _check_values(content, file=str(path))
    return content


def _check_values(content: Mapping[str, Any], *, file: str) -> None:
    """Check what stands inside a recipe's lists and mappings, and the sizes of its numbers.

    Raises:
        InvalidInputError: A step that is none, a text that is none, or a number too large.
    """
    for number, step in enumerate(content["steps"]):
        if not isinstance(step, dict) or not isinstance(step.get("pass_name"), str):
            raise InvalidInputError(
                f"step {number} of {file} has no pass_name",
                field=f"steps[{number}].pass_name",
                remedy=_REMEDY,
            )
        for key in step:
            if key not in _STEP_KEYS:
                raise InvalidInputError(
                    f"step {number} of {file} has the key {key!r}, which steps do not have",
                    field=f"steps[{number}].{key}",
                    remedy=_REMEDY,
                )
        if not isinstance(step.get("parameters", {}), dict):
            raise InvalidInputError(
                f"parameters of step {number} of {file} are not an object",
                field=f"steps[{number}].parameters",
                remedy=_REMEDY,
            )
    texts = [
        *((f"architecture[{i}]", line) for i, line in enumerate(content.get("architecture", []))),
        *((f"tool_versions.{name}", v) for name, v in content.get("tool_versions", {}).items()),
    ]
    for field, text in texts:
        if not isinstance(text, str):
            raise InvalidInputError(f"{field} of {file} is not a text", field=field, remedy=_REMEDY)
    for key, bits in _BITS.items():
        if not -(1 << bits - 1) <= content.get(key, 0) < 1 << bits - 1:
            raise InvalidInputError(
                f"{key} of {file} does not fit into {bits} bits", field=key, remedy=_REMEDY
            )


def _inside(path: Path) -> str:
    """Return the recipe's text in a model file.

    Raises:
        InvalidInputError: The file cannot be read, is damaged, or holds no recipe.
    """
    facts = read_metadata(path)
    if RECIPE_KEY not in facts:
        digest = facts.get(RECIPE_DIGEST_KEY)
        raise InvalidInputError(
            f"{path} was too small to hold its recipe, whose sha-256 is {digest}"
            if digest
            else f"{path} holds no recipe: tightfit did not write it",
            field=str(path),
            remedy=_REMEDY,
        )
    return facts[RECIPE_KEY]


def recipe_of(content: Mapping[str, Any], *, file: str = "recipe") -> recipe_pb2.Recipe:
    """Return the message of a recipe's content, as `read_content` has checked it.

    Raises:
        InvalidInputError: An unknown output format, or parameters that no message holds.
    """
    check_word(content["output_format"], FORMATS, field="output_format")
    recipe = recipe_pb2.Recipe(
        version=content["version"],
        source_digest=content.get("source_digest", ""),
        seed=content.get("seed", 0),
        target=content.get("target", ""),
        output_format=format_value(content["output_format"]),
        tool_versions=content.get("tool_versions", {}),
        architecture=content.get("architecture", []),
    )
    for number, step in enumerate(content["steps"]):
        message = recipe.steps.add(pass_name=step["pass_name"])
        try:
            json_format.ParseDict(step.get("parameters", {}), message.parameters)
        except json_format.ParseError as error:
            raise InvalidInputError(
                f"parameters of step {number} of {file} cannot be sent: {error}",
                field=f"steps[{number}].parameters",
                remedy=_REMEDY,
            ) from error
    return recipe


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return where two recipes differ, as (path, value in the first, value in the second).

    Steps are compared by the name of their pass, long lists of units by what one has and the other
    has not; what is missing is an empty text. Steps that both have in another order differ by that.
    """
    ours, theirs = _by_pass(one), _by_pass(other)
    found = list(_differences("", ours, theirs))
    orders = [
        [name for name in these["steps"] if name in those["steps"]]
        for these, those in ((ours, theirs), (theirs, ours))
    ]
    if orders[0] != orders[1]:
        found.append(("order of steps", ", ".join(orders[0]), ", ".join(orders[1])))
    return found


def _by_pass(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its steps as a mapping, numbered where a pass comes again."""
    steps: dict[str, Any] = {}
    for step in content["steps"]:
        name, count = step["pass_name"], 2
        while name in steps:
            name, count = f"{step['pass_name']}#{count}", count + 1
        steps[name] = step.get("parameters", {})
    return {**content, "steps": steps}


def _differences(path: str, one: Any, other: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(inner, one.get(key, _MISSING), other.get(key, _MISSING))
    elif one != other:
        if (
            isinstance(one, list)
            and isinstance(other, list)
            and max(len(one), len(other)) > _LONG_LIST
        ):
            yield path, _against(one, other), _against(other, one)
        else:
            yield path, _text(one), _text(other)


_MISSING = object()


def _against(values: list[Any], others: list[Any]) -> str:
    """Return how long a list is, and the first of what only it has."""
    own = [value for value in values if value not in others]
    shown = ", ".join(str(value) for value in own[:_LONG_LIST])
    more = ", ..." if len(own) > _LONG_LIST else ""
    return f"{len(values)} entries" + (f", only here: {shown}{more}" if own else "")


def _text(value: Any) -> str:
    if value is _MISSING:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
