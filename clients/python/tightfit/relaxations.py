"""What would let a result through that does not fit: the smallest relaxations, as options of a command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tightfit.quantities import format_percent
from tightfit.summary import COST_BY_QUANTITY


def relaxation_commands(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return per relaxation: what was asked, what would do, and the option that asks for it.

    The option is empty where no known model meets the other limits.
    """
    rows = []
    for relaxation in (result.get("infeasibility") or {}).get("relaxations", []):
        quantity, needed = relaxation["quantity"], relaxation["needed"]
        if quantity == "accuracy":
            asked = f"≥ {format_percent(relaxation['limit'])}"
            would_do = "" if needed is None else f"≥ {format_percent(needed)}"
        else:
            show = COST_BY_QUANTITY[quantity].show
            asked = f"≤ {show(relaxation['limit'])}"
            would_do = "" if needed is None else f"≤ {show(needed)}"
        rows.append((asked, would_do, option_for(result, quantity, needed)))
    return rows


def option_for(result: Mapping[str, Any], quantity: str, needed: float | None) -> str:
    """Return the command-line option that sets a limit to what is needed, or ""."""
    if needed is None:
        return ""
    if quantity != "accuracy":
        cost = COST_BY_QUANTITY[quantity]
        return f"{cost.option} {cost.as_option(needed)}"
    baseline = (result.get("baseline") or {}).get("accuracy")
    if result["budget"].get("max_accuracy_drop") is not None and baseline is not None:
        drop = max(0.0, baseline - needed)
        return f"--max-accuracy-drop {math.ceil(drop * 10_000 - 1e-9) / 10_000:g}"
    # one hundredth of a percentage point is as fine as anyone asks for
    return f"--min-accuracy {max(1, math.floor(needed * 10_000)) / 10_000:g}"
