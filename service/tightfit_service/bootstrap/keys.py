"""Keys that results are signed with."""

from __future__ import annotations

from pathlib import Path

from tightfit_service.adapters.provenance.signing_key import (
    kept_public_keys,
)
from tightfit_service.settings import Settings


def public_keys(settings: Settings) -> bytes:
    """Return the public keys that results of this deployment can be verified with, as PEM."""
    return kept_public_keys(keys_dir(settings))


def signing_key_file(settings: Settings) -> Path | None:
    """Return the file of the key that results are signed with, where a setting names one."""
    return Path(settings.provenance_key_file) if settings.provenance_key_file else None


def keys_dir(settings: Settings) -> Path:
    """Return the folder of the keys that the server made itself."""
    return settings.data_dir / "keys"
