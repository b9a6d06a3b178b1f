"""HTML that is put together from Python values; whatever is not markup already is escaped.

It knows nothing of pages, and cannot tell a good address from a bad one: callers build addresses with ``path``.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from markupsafe import Markup, escape

Content = str | int | Markup | None | Iterable["Content"]

_VOID = {"meta", "link", "img", "br"}


def tag(name: str, /, *children: Content, **attributes: str | float | bool | None) -> Markup:
    """An element.

    :param name: of the element.
    :param children: its content; None is left out, lists are laid flat.
    :param attributes: with a trailing underscore where Python has the word (``class_``), and ``-`` written ``_``.
        None and False are left out.
    """
    shown = []
    for key, value in attributes.items():
        word = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(Markup(" {}").format(word))
        elif value is not None and value is not False:
            shown.append(Markup(' {}="{}"').format(word, value))
    start = Markup("<{}{}>").format(name, Markup("").join(shown))
    return start if name in _VOID else Markup("{}{}</{}>").format(start, join(children), name)


def join(content: Content) -> Markup:
    """Content, one after the other."""
    if content is None:
        return Markup("")
    if isinstance(content, str | int):
        return escape(content)
    return Markup("").join(join(item) for item in content)


def path(base: str, *parts: str) -> str:
    """An address on this server: each part is one segment of it, whatever it holds."""
    return "/".join([base, *(quote(part, safe="") for part in parts)])
