"""Measuring on devices, as a command line asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tightfit.errors import InvalidInputError
from tightfit.words import VERIFICATIONS, check_word


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Whether candidates are measured on a device, and on which."""

    verify: Annotated[
        str,
        typer.Option(
            metavar="WHEN",
            help="Measure candidates on a connected device before one wins: "
            f"{', '.join(VERIFICATIONS)}.",
        ),
    ] = "none"
    runner_label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Label that a runner must carry to measure for --verify; repeat for several.",
            show_default=False,
        ),
    ] = None

    def check(self) -> None:
        """Refuse a word that is not offered.

        Raises:
            InvalidInputError: It is not; names the nearest that is.
        """
        check_word(self.verify, VERIFICATIONS, field="--verify")

    def labels(self) -> dict[str, str]:
        """Return the labels that a runner must carry.

        Raises:
            InvalidInputError: One has no key or no equals sign.
        """
        labels = {}
        for text in self.runner_label or ():
            key, equals, value = text.partition("=")
            if not (key.strip() and equals):
                raise InvalidInputError(
                    f"{text!r} is no label", field="--runner-label", remedy="write KEY=VALUE"
                )
            labels[key.strip()] = value.strip()
        return labels
