"""A command that takes groups of options shows each option, and is given the groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tightfit.cli.option_groups import with_groups


@dataclass(frozen=True, kw_only=True)
class Paint:
    colour: Annotated[str, typer.Option(metavar="NAME", help="Of the wall.")]
    coats: Annotated[int, typer.Option(min=1)] = 2


@dataclass(frozen=True, kw_only=True)
class Place:
    room: Annotated[Path | None, typer.Argument(metavar="ROOM")] = None


def application(seen: list[object]) -> typer.Typer:
    app = typer.Typer()

    @app.command("paint")
    @with_groups
    def paint(*, quick: bool = False, place: Place, paint: Paint, note: str = "") -> None:
        """Paint a room."""
        seen.extend((quick, place, paint, note))

    return app


def test_the_options_of_a_group_stand_in_its_place() -> None:
    command = typer.main.get_command(application([]))
    assert [parameter.name for parameter in command.params if parameter.name != "help"][:5] == [
        *("quick", "room", "colour", "coats", "note"),
    ]
    assert command.help == "Paint a room."
    colour, coats = command.params[2], command.params[3]
    assert (colour.opts, colour.required, colour.metavar) == (["--colour"], True, "NAME")
    assert (coats.required, coats.default) == (False, 2)


def test_the_command_is_given_the_groups() -> None:
    seen: list[object] = []
    CliRunner().invoke(application(seen), ["hall", "--colour", "red", "--note", "dry"])
    assert seen == [False, Place(room=Path("hall")), Paint(colour="red", coats=2), "dry"]


@pytest.mark.parametrize("words", [["--coats", "3"], ["--colour", "red", "--coats", "0"]])
def test_the_options_of_a_group_are_checked_as_all_others_are(words: list[str]) -> None:
    seen: list[object] = []
    assert CliRunner().invoke(application(seen), words).exit_code == 2
    assert not seen
