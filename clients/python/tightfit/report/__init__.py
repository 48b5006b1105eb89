"""`report.html`: one self-contained page that shows what `result.json` holds."""

from tightfit.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
