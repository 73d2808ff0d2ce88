"""HTML that is escaped because of how it is made."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"meta", "img"}


class Markup(str):
    """Text that is HTML already; any other text is escaped."""

    __slots__ = ()


Child = str | Iterable["Child"] | None


def element(tag: str, *children: Child, **attributes: str | None) -> Markup:
    """`<tag attributes>children</tag>`, without empty attributes; `class_` becomes class, `aria_label` aria-label."""
    pairs = (f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items() if value)
    opening = f"<{tag}{''.join(pairs)}>"
    return Markup(opening if tag in VOID else f"{opening}{join(children)}</{tag}>")


def join(child: Child) -> Markup:
    """Any nesting of children as one text."""
    if child is None:
        return Markup()
    if isinstance(child, str):
        return child if isinstance(child, Markup) else Markup(escape(child))
    return Markup("".join(map(join, child)))
