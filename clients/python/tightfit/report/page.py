"""The page itself: sections, style, script and data put into one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from tightfit.report.plot_data import plot_data
from tightfit.report.sections import all_sections
from tightfit.summary import verdict


def render_report(result: Mapping[str, Any]) -> str:
    """Return the report as one HTML document.

    Style and script are inlined and the content security policy forbids everything else, so the
    page opens from disk, asks no network for anything, and nothing in a result can run in it.
    """
    style, script = _asset("report.css"), _asset("plot.js")
    name = result["model"].get("file") or "model"
    return Template(_asset("template.html")).substitute(
        policy=_policy(script),
        title=html.escape(f"{name}: {verdict(result)[0]}"),
        style=style,
        body=all_sections(result),
        data=embedded_json(plot_data(result)),
        script=script,
    )


def write_report(result: Mapping[str, Any], path: Path) -> None:
    """Write the report to a file.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(render_report(result), encoding="utf-8")


def embedded_json(value: object) -> str:
    """Return JSON that cannot end the script element it stands in, nor open a comment there."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(script: str) -> str:
    """Allow this very script and nothing from elsewhere; bar widths are style attributes."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return resources.files("tightfit.report").joinpath(name).read_text(encoding="utf-8").strip()
