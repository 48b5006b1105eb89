"""The options that commands share, and the budget that they spell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

from tightfit import quantities
from tightfit.client import Client
from tightfit.connection import DEFAULT_PROJECT, DEFAULT_SERVER
from tightfit.credentials import Credentials
from tightfit.errors import InvalidInputError
from tightfit.local_server import default_data_dir, local_server
from tightfit.target_file import is_target_file, read_target_file
from tightfit.v1 import budget_pb2, hardware_pb2
from tightfit.words import VERIFICATIONS

_WHERE = "Where it runs"
_CALLER = "Who calls: before the command"
_BUDGET = "Budget: limits on the result"
_TRAINING = "Training"

Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar="TIGHTFIT_SERVER",
        metavar="HOST:PORT",
        help=f"Server to use.  [default: {DEFAULT_SERVER}]",
        rich_help_panel=_WHERE,
    ),
]
Project = Annotated[
    str,
    typer.Option(
        envvar="TIGHTFIT_PROJECT",
        metavar="NAME",
        help="Project that models, datasets and jobs belong to.",
        rich_help_panel=_CALLER,
    ),
]
Tls = Annotated[
    bool,
    typer.Option("--tls", envvar="TIGHTFIT_TLS", help="Connect by TLS.", rich_help_panel=_CALLER),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="TIGHTFIT_CA_FILE",
        metavar="PEM",
        help="Authorities to trust instead of the system's; implies --tls.",
        rich_help_panel=_CALLER,
    ),
]
CertFile = Annotated[
    Path | None,
    typer.Option(
        envvar="TIGHTFIT_CERT_FILE",
        metavar="PEM",
        help="Certificate to show to the server; implies --tls.",
        rich_help_panel=_CALLER,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        envvar="TIGHTFIT_KEY_FILE",
        metavar="PEM",
        help="Key of that certificate.",
        rich_help_panel=_CALLER,
    ),
]
Token = Annotated[
    str,
    typer.Option(
        envvar="TIGHTFIT_TOKEN",
        metavar="TOKEN",
        help="API key or token of an identity provider. Other users of this machine can read it "
        "here: better TIGHTFIT_TOKEN or --token-file.",
        show_default=False,
        rich_help_panel=_CALLER,
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="TIGHTFIT_TOKEN_FILE",
        metavar="FILE",
        help="File that holds the token; read again for every call.",
        rich_help_panel=_CALLER,
    ),
]
Local = Annotated[
    bool,
    typer.Option(
        "--local", help="Run the service here, for this command only.", rich_help_panel=_WHERE
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="TIGHTFIT_DATA_DIR",
        metavar="DIR",
        help="State of the service with --local.  [default: ~/.local/share/tightfit]",
        rich_help_panel=_WHERE,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show every event, and the log of --local.")
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="NAME|YAML",
        help="Device: a name from `tightfit targets list`, or a YAML file that describes it.",
    ),
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        metavar="20ms",
        help="Greatest latency of an inference, in us, ms or s.",
        rich_help_panel=_BUDGET,
    ),
]
MaxEnergy = Annotated[
    str | None,
    typer.Option(
        metavar="1.5mJ",
        help="Greatest energy of an inference, in uJ, mJ or J.",
        rich_help_panel=_BUDGET,
    ),
]
MaxRam = Annotated[
    str | None,
    typer.Option(
        metavar="128KiB",
        help="Greatest peak RAM, in B, kB, KiB, MB, MiB; KiB is 1024 bytes, kB 1000.",
        rich_help_panel=_BUDGET,
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        metavar="256KiB", help="Greatest size in flash, in the same units.", rich_help_panel=_BUDGET
    ),
]
MaxDownload = Annotated[
    str | None,
    typer.Option(
        metavar="40KiB",
        help="Greatest size of the packed file that is downloaded; implies --packed.",
        rich_help_panel=_BUDGET,
    ),
]
MinAccuracy = Annotated[
    float | None,
    typer.Option(
        metavar="0.95", help="Least accuracy, a fraction: 0.95 is 95 %.", rich_help_panel=_BUDGET
    ),
]
MaxAccuracyDrop = Annotated[
    float | None,
    typer.Option(
        metavar="0.01",
        help="Greatest loss of accuracy; 0.01 is one percentage point.",
        rich_help_panel=_BUDGET,
    ),
]
Verify = Annotated[
    str,
    typer.Option(
        "--verify",
        metavar="WHEN",
        help="Measure candidates on a connected device before one wins: "
        f"{', '.join(VERIFICATIONS)}.",
    ),
]

Packed = Annotated[
    bool,
    typer.Option(
        "--packed",
        help="Pack the result for download as well; `tightfit unpack` restores it bit by bit.",
    ),
]

Teachers = Annotated[
    list[Path] | None,
    typer.Option(
        "--teacher",
        metavar="FILE",
        help="Model of the same inputs and classes that training learns from too; repeat for several.",
        rich_help_panel=_TRAINING,
    ),
]

Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Folder for model, recipe.json, result.json and report.html. Those of an earlier result "
        "there are replaced; other files stay.",
    ),
]


_PROJECT: ContextVar[str] = ContextVar("project", default=DEFAULT_PROJECT)
_CREDENTIALS: ContextVar[Credentials | None] = ContextVar("credentials", default=None)


def connect_with(project: str, credentials: Credentials) -> None:
    """Make all that `connected` yields from now on show these credentials and work in this project."""
    _PROJECT.set(project)
    _CREDENTIALS.set(credentials)


@contextmanager
def connected(
    server: str | None, *, local: bool, data_dir: Path | None, show_log: bool = False
) -> Iterator[Client]:
    """Yield a client of the server that the options name, or of one that runs for as long.

    --local wins over a server, which the environment may name for all commands. Project, TLS and
    token are those of the options before the command.

    Raises:
        InvalidInputError: The service is not installed beside the client.
        UnavailableError: The local server did not come up.
    """
    project = _PROJECT.get()
    if not local:
        with Client(
            server or DEFAULT_SERVER, project=project, credentials=_CREDENTIALS.get()
        ) as client:
            yield client
        return
    folder = data_dir or default_data_dir(os.environ)
    with (
        local_server(folder.resolve(), show_log=show_log) as address,
        Client(address, project=project) as client,
    ):
        yield client


def target_of(text: str) -> str | hardware_pb2.HardwareSpec:
    """Return the name of a target, or the description that the file holds."""
    return read_target_file(Path(text)) if is_target_file(text) else text


def budget_of(
    *,
    max_latency: str | None,
    max_energy: str | None,
    max_ram: str | None,
    max_size: str | None,
    max_download: str | None,
    min_accuracy: float | None,
    max_accuracy_drop: float | None,
) -> budget_pb2.Budget:
    """Return the budget that the options spell.

    Raises:
        InvalidInputError: A limit without a unit, not above zero, or two limits on accuracy.
    """
    budget = budget_pb2.Budget()
    if max_latency is not None:
        budget.max_latency_ms = quantities.parse_latency_ms(max_latency, option="--max-latency")
    if max_energy is not None:
        budget.max_energy_mj = quantities.parse_energy_mj(max_energy, option="--max-energy")
    if max_ram is not None:
        budget.max_ram_bytes = quantities.parse_bytes(max_ram, option="--max-ram")
    if max_size is not None:
        budget.max_size_bytes = quantities.parse_bytes(max_size, option="--max-size")
    if max_download is not None:
        budget.max_download_bytes = quantities.parse_bytes(max_download, option="--max-download")
    if min_accuracy is not None and max_accuracy_drop is not None:
        raise InvalidInputError(
            "--min-accuracy and --max-accuracy-drop contradict each other",
            field="--max-accuracy-drop",
            remedy="keep one of them",
        )
    if min_accuracy is not None:
        budget.min_accuracy = quantities.parse_fraction(min_accuracy, option="--min-accuracy")
    if max_accuracy_drop is not None:
        budget.max_accuracy_drop = quantities.parse_fraction(
            max_accuracy_drop, option="--max-accuracy-drop", zero_allowed=True
        )
    return budget
