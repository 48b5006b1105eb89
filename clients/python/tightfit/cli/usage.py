"""What the parser of the command line refuses, said as all other errors are: what, where, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from tightfit.errors import InvalidInputError

# of its parser's errors Typer exports this one, whose base is that of all of them
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def explained(error: Any) -> InvalidInputError | None:
    """Return an error of the parser as one that names the field and the remedy.

    None where nothing was given, for which the parser has printed the help already.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    context = error.ctx
    command = context.command_path if context is not None else "tightfit"
    usage = f"`{command} --help` shows what it takes"
    if (parameter := getattr(error, "param", None)) is not None:
        return _of_parameter(error.message, parameter, usage)
    option = getattr(error, "option_name", "")
    misplaced = _misplaced(option, context) if context is not None else None
    return misplaced or InvalidInputError(
        error.message.rstrip("."), field=option, remedy=_nearest(error) or usage
    )


def _of_parameter(message: str, parameter: Any, usage: str) -> InvalidInputError:
    is_option = parameter.param_type_name == "option"
    field = parameter.opts[0] if is_option else (parameter.metavar or parameter.name).upper()
    if message:
        return InvalidInputError(message.rstrip("."), field=field, remedy=usage)
    meaning = getattr(parameter, "help", "")
    return InvalidInputError(
        f"{field} is missing", field=field, remedy=f"give {field}: {meaning}" if meaning else usage
    )


def _misplaced(option: str, context: Any) -> InvalidInputError | None:
    """Return that an option stands on the wrong side of the command, if it is so."""
    root = context.find_root()
    if context.parent is not None and option in _own_options(root.command):
        words = context.command_path.removeprefix(root.command_path).strip()
        return InvalidInputError(
            f"{option} stands before the command",
            field=option,
            remedy=f"write `{root.command_path} {option} ... {words} ...`",
        )
    if context.parent is None and option in set(_options_below(root.command)):
        return InvalidInputError(
            f"{option} stands behind the command",
            field=option,
            remedy=f"write `{root.command_path} COMMAND {option} ...`",
        )
    return None


def _own_options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def _options_below(command: Any) -> Iterator[str]:
    for inner in getattr(command, "commands", {}).values():
        yield from _own_options(inner)
        yield from _options_below(inner)


def _nearest(error: Any) -> str:
    near = sorted(getattr(error, "possibilities", None) or ())
    return f"did you mean {' or '.join(near)}?" if near else ""
