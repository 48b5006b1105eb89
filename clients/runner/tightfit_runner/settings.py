"""The configuration file of the agent: the board behind it, and its power meter."""

from __future__ import annotations

import configparser
from pathlib import Path

from tightfit_runner.board import BoardSettings
from tightfit_runner.contract import FORMATS
from tightfit_runner.device import Device
from tightfit_runner.failures import SettingsError
from tightfit_runner.meters import CommandMeter, Meter, Ppk2Meter, find_meter
from tightfit_runner.runtimes import InstalledRuntime

BOARD = "board"
ENERGY = "energy"
_BOARD_KEYS = {
    "core",
    "core_count",
    "clock_mhz",
    "ram_bytes",
    "name",
    "isa_features",
    "runtime",
    "runtime_version",
    "formats",
    "port",
    "baud",
    "flash_command",
    "flash_timeout_seconds",
    "boot_seconds",
}
_ENERGY_KEYS = {"meter", "port", "supply_v", "mode", "command"}


def read_settings(path: Path) -> configparser.ConfigParser:
    """Return the content of an INI file.

    Raises:
        SettingsError: It cannot be read, or has sections or keys that mean nothing.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(), source=str(path))
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    for section in parser.sections():
        known = {BOARD: _BOARD_KEYS, ENERGY: _ENERGY_KEYS}.get(section)
        if known is None:
            raise SettingsError(
                f"{path}: [{section}] means nothing; there are [board] and [energy]"
            )
        for key in parser[section]:
            if key not in known:
                raise SettingsError(
                    f"{path}: [{section}] {key} means nothing; there are {', '.join(sorted(known))}"
                )
    return parser


def board_settings(parser: configparser.ConfigParser) -> BoardSettings | None:
    """Return the board that the file describes, or None where it has none.

    Raises:
        SettingsError: Something is missing, or is no number.
    """
    if BOARD not in parser:
        return None
    section = parser[BOARD]
    for key in ("core", "clock_mhz", "ram_bytes", "runtime", "port"):
        if not section.get(key):
            raise SettingsError(f"[board] has no {key}")
    formats = tuple(section.get("formats", "tflite").replace(",", " ").split())
    unknown = set(formats) - FORMATS.keys()
    if unknown:
        raise SettingsError(
            f"[board] formats: {', '.join(sorted(unknown))} is none of {', '.join(FORMATS)}"
        )
    try:
        device = Device(
            core=section["core"],
            core_count=section.getint("core_count", 1),
            ram_bytes=int(section["ram_bytes"]),
            clock_mhz=float(section["clock_mhz"]),
            display_name=section.get("name", section["core"]),
            isa_features=tuple(section.get("isa_features", "").replace(",", " ").split()),
            runtimes=(
                InstalledRuntime(section["runtime"], section.get("runtime_version", ""), formats),
            ),
        )
        return BoardSettings(
            device=device,
            port=section["port"],
            baud=section.getint("baud", 115_200),
            flash_command=section.get("flash_command", ""),
            flash_timeout_seconds=section.getfloat("flash_timeout_seconds", 300.0),
            boot_seconds=section.getfloat("boot_seconds", 30.0),
        )
    except ValueError as error:
        raise SettingsError(f"[board]: {error}") from error


def meter_of(parser: configparser.ConfigParser, *, is_board: bool) -> Meter | None:
    """Return the meter that the file names; without one, what this machine has, and none for a board.

    Raises:
        SettingsError: The meter is unknown or its settings are incomplete.
    """
    section = dict(parser[ENERGY]) if parser.has_section(ENERGY) else {}
    kind = section.get("meter", "none" if is_board else "auto")
    if kind == "none":
        return None
    if kind == "auto":
        return find_meter()
    if kind == "command":
        if not section.get("command"):
            raise SettingsError("[energy] meter = command needs a command")
        return CommandMeter(section["command"])
    if kind == "ppk2":
        if not section.get("port") or not section.get("supply_v"):
            raise SettingsError("[energy] meter = ppk2 needs port and supply_v")
        try:
            supply_v = float(section["supply_v"])
        except ValueError as error:
            raise SettingsError(f"[energy] supply_v: {error}") from error
        return Ppk2Meter(section["port"], supply_v, is_source=section.get("mode") == "source")
    raise SettingsError(f"[energy] meter = {kind}: choose auto, none, command or ppk2")
