"""HTML elements as values: what is text is escaped, so that no name in a model can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

NOTHING = "\u2013"
"""Stands where a figure is not known."""
_VOID = frozenset({"br", "hr", "img", "input", "meta"})


class Markup(str):
    """A string that is HTML already; plain strings are text and are escaped."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: str | float | None) -> Markup:
    """Return one element.

    Args:
        name: Tag name.
        children: Markup, text, None (left out), or iterables of these.
        attributes: Underscores become dashes, one at the end is dropped (`class_`); None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """Return children one after the other, text escaped."""
    return Markup("".join(_flat(child) for child in children))


def _flat(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(child, quote=False)
    if isinstance(child, Iterable):
        return joined(child)
    return html.escape(str(child), quote=False)


def section(name: str, title: str, lead: str | None, *children: object) -> Markup:
    """Return a section of the page with its heading, and what it is about in a sentence or two."""
    return element(
        "section",
        element("h2", title),
        element("p", lead, class_="section-lead") if lead else None,
        *children,
        id=name,
    )
