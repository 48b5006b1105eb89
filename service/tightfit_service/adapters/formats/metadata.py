"""Metadata in exported files: what may be left out costs a file next to nothing, or is left out.

Every byte of a file counts against the budget for size, so a recipe that is larger than
1/32 of its file is compressed, and where that is not enough its digest stands for it. Names of classes
are kept or left out.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

from tightfit_service.application.work.file_metadata import LABELS_KEY, RECIPE_KEY

COMPRESSED = "zlib+base64:"
"""Begins values that are base64 of zlib of UTF-8; clients read both forms (`tightfit.model_file`)."""

_AFFORDABLE_SHARE = 1 / 32
_BEST = 9


def affordable(metadata: Mapping[str, str], file_bytes: int) -> dict[str, str]:
    """Return the metadata that a file of so many bytes carries."""
    room = file_bytes * _AFFORDABLE_SHARE
    kept = {}
    for key, value in metadata.items():
        forms = [value]
        if key == RECIPE_KEY:
            forms.append(compressed(value))
        if key in {RECIPE_KEY, LABELS_KEY}:
            forms = [form for form in forms if len(form.encode()) <= room]
        if forms:
            kept[key] = forms[0]
    return kept


def compressed(value: str) -> str:
    """Return a text in the compressed form."""
    return COMPRESSED + base64.b64encode(zlib.compress(value.encode(), _BEST)).decode()
