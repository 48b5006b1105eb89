"""The agent that a device runs: it measures models for a tightfit server and says what it saw."""

from importlib import metadata

try:
    __version__ = metadata.version("tightfit-runner")
except metadata.PackageNotFoundError:  # run from a checkout
    __version__ = "0.0.0"
