"""The command `tightfit`."""

from tightfit.cli.app import main

__all__ = ["main"]
