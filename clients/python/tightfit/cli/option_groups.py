"""Options that belong together, as one parameter of every command that takes them.

A group is a frozen dataclass whose fields are annotated as options; its methods make of them what the
command works with. Options, defaults and help texts stand there once, whichever commands share them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command as typer can read it: in the place of each group stand its options.

    Typer reads options off a signature and knows no groups, so it is shown a flat one; what it fills in
    is put together again before the command runs.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, type[Any]] = {
        name: parameter.annotation
        for name, parameter in parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    options = {
        name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()
    }

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{option: given.pop(option) for option in options[name]})
        command(**given)

    flat.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what inspect looks for
        [
            shown.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in parameters.items()
            for shown in options.get(name, {name: parameter}).values()
        ]
    )
    return flat
