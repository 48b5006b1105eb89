"""Counts that hardware rounds up: to vectors, blocks of channels, bricks."""

from __future__ import annotations


def next_multiple(count: int, step: int) -> int:
    """Return the least multiple of a step that is no less than a count."""
    return -(-count // step) * step
