"""The budget, as a command line spells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from tightfit import quantities
from tightfit.errors import InvalidInputError
from tightfit.v1 import budget_pb2

_PANEL = "Budget: limits on the result"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits on the result."""

    max_latency: Annotated[
        str | None,
        typer.Option(
            metavar="20ms",
            help="Greatest latency of an inference, in us, ms or s.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_energy: Annotated[
        str | None,
        typer.Option(
            metavar="1.5mJ",
            help="Greatest energy of an inference, in uJ, mJ or J.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_ram: Annotated[
        str | None,
        typer.Option(
            metavar="128KiB",
            help="Greatest peak RAM, in B, kB, KiB, MB, MiB; KiB is 1024 bytes, kB 1000.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_size: Annotated[
        str | None,
        typer.Option(
            metavar="256KiB",
            help="Greatest size in flash, in the same units.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_download: Annotated[
        str | None,
        typer.Option(
            metavar="40KiB",
            help="Greatest size of the packed file that is downloaded; implies --packed.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="0.95",
            help="Least accuracy, a fraction: 0.95 is 95 %.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            metavar="0.01",
            help="Greatest loss of accuracy; 0.01 is one percentage point.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def budget(self) -> budget_pb2.Budget:
        """Return the budget that the options spell.

        Raises:
            InvalidInputError: A limit without a unit, not above zero, or two limits on accuracy.
        """
        budget = budget_pb2.Budget()
        if self.max_latency is not None:
            budget.max_latency_ms = quantities.parse_latency_ms(
                self.max_latency, option="--max-latency"
            )
        if self.max_energy is not None:
            budget.max_energy_mj = quantities.parse_energy_mj(
                self.max_energy, option="--max-energy"
            )
        if self.max_ram is not None:
            budget.max_ram_bytes = quantities.parse_bytes(self.max_ram, option="--max-ram")
        if self.max_size is not None:
            budget.max_size_bytes = quantities.parse_bytes(self.max_size, option="--max-size")
        if self.max_download is not None:
            budget.max_download_bytes = quantities.parse_bytes(
                self.max_download, option="--max-download"
            )
        if self.min_accuracy is not None and self.max_accuracy_drop is not None:
            raise InvalidInputError(
                "--min-accuracy and --max-accuracy-drop contradict each other",
                field="--max-accuracy-drop",
                remedy="keep one of them",
            )
        if self.min_accuracy is not None:
            budget.min_accuracy = quantities.parse_fraction(
                self.min_accuracy, option="--min-accuracy"
            )
        if self.max_accuracy_drop is not None:
            budget.max_accuracy_drop = quantities.parse_fraction(
                self.max_accuracy_drop, option="--max-accuracy-drop", zero_allowed=True
            )
        return budget
