"""Conversion of frozen values to plain JSON data and back, for stores, recipes and worker processes."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar, get_args, get_origin

import numpy as np
from cattrs import Converter, transform_error
from cattrs.errors import BaseValidationError
from cattrs.v import format_exception

from tightfit_service.domain.errors import InvalidRequestError, TightfitError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Return dicts, lists, strings, numbers, booleans and None that say the same as `value`.

    Handles the dataclasses of the domain and the ports, enums, tuples, mappings, NumPy scalars and
    datetimes (ISO 8601). Infinite and NaN floats become the strings `inf`, `-inf` and `nan`, because
    JSON has no words for them; a field of type float reads them back.

    Raises:
        TypeError: The value holds bytes or an array; those travel as artifacts.
    """
    return _converter.unstructure(value)


def from_plain(
    kind: type[T],
    data: Any,
    *,
    field: str = "",
    remedy: str = "pass the data on as it was received",
) -> T:
    """Return the value of type `kind` that `to_plain` made `data` from.

    Keys that `kind` does not know are ignored and missing ones take their defaults, so that data
    survives a change of version; a wrong type never passes silently.

    Args:
        kind: The type.
        data: What was made of the value.
        field: Where the data stands in a request, for the error.
        remedy: What to do about data that cannot be read, for the error.

    Raises:
        InvalidRequestError: A key is missing or a value has the wrong type; says where.
        TightfitError: What the value's own checks raise (such as InvalidBudgetError).
    """
    try:
        return _converter.structure(data, kind)
    except BaseValidationError as error:
        own = _own_error(error)
        if own is not None:
            raise own from error
        detail = "; ".join(transform_error(error, format_exception=_describe))
        raise _unreadable(kind, detail, field, remedy) from error
    except (TypeError, ValueError, KeyError) as error:
        raise _unreadable(kind, str(error), field, remedy) from error


def _unreadable(kind: type[Any], detail: str, field: str, remedy: str) -> InvalidRequestError:
    name = getattr(kind, "__name__", str(kind))
    return InvalidRequestError(
        f"this is not a {name} as tightfit writes it: {detail}", field=field, remedy=remedy
    )


def _describe(error: BaseException, kind: type[Any] | None) -> str:
    if isinstance(error, TypeError | ValueError):
        return str(error)
    return str(format_exception(error, kind))


def _own_error(group: BaseException) -> TightfitError | None:
    if isinstance(group, TightfitError):
        return group
    if isinstance(group, BaseExceptionGroup):
        found = (_own_error(error) for error in group.exceptions)
        return next((error for error in found if error is not None), None)
    return None


def _plain_float(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _no_binary(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not plain data; store it as an artifact")


def _read_float(value: Any, _: type) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"expected a number, got {value!r}")
    if isinstance(value, str) and value not in {"inf", "-inf", "nan"}:
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def _read_int(value: Any, _: type) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value


def _read_bool(value: Any, _: type) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def _read_str(value: Any, kind: type[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    # cattrs finds the hook of `str` for a StrEnum too
    if issubclass(kind, enum.Enum):
        return kind(value)
    return value


def _read_time(value: Any, _: type) -> datetime:
    if not isinstance(value, str):
        raise TypeError(f"expected a time in ISO 8601, got {value!r}")
    return datetime.fromisoformat(value)


def _is_uniform_tuple(kind: Any) -> bool:
    arguments = get_args(kind)
    return get_origin(kind) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis


def _is_open_union(kind: Any) -> bool:
    """Whether the type is `str | Mapping[str, Any]`: plain data already, whichever it is."""
    return set(get_args(kind)) == {str, Mapping[str, Any]}


def _make_converter() -> Converter:
    converter = Converter()
    converter.register_unstructure_hook(float, _plain_float)
    converter.register_unstructure_hook(datetime, datetime.isoformat)
    converter.register_unstructure_hook(np.floating, lambda value: _plain_float(value.item()))
    converter.register_unstructure_hook(np.integer, lambda value: value.item())
    converter.register_unstructure_hook(np.bool_, lambda value: value.item())
    for kind in (bytes, bytearray, memoryview, np.ndarray):
        converter.register_unstructure_hook(kind, _no_binary)

    converter.register_structure_hook(float, _read_float)
    converter.register_structure_hook(int, _read_int)
    converter.register_structure_hook(bool, _read_bool)
    converter.register_structure_hook(str, _read_str)
    converter.register_structure_hook(datetime, _read_time)
    converter.register_structure_hook_func(_is_open_union, lambda value, _: value)

    # cattrs alone would take a string for a sequence of characters
    @converter.register_structure_hook_factory(_is_uniform_tuple)
    def tuple_reader(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
        read_list = converter.get_structure_hook(list[kind.__args__[0]])

        def read(value: Any, _: type) -> tuple[Any, ...]:
            if not isinstance(value, list | tuple):
                raise TypeError(f"expected a list, got {value!r}")
            return tuple(read_list(value, list[kind.__args__[0]]))

        return read

    return converter


_converter = _make_converter()
