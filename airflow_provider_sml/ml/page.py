"""One small self-contained HTML page: headings, text, tables and line charts, everything escaped, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}.good{color:#18794e}.bad{color:#cd2b31}.note{color:#666}
figure{margin:1rem 0}figure svg{max-width:100%;height:auto}
@media(prefers-color-scheme:dark){body{color:#eee;background:#111}th,td{border-color:#333}.note{color:#999}}
"""


class Page:
    """A page that is put together part by part.

    :param title: of the page.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> Page:
        """A heading."""
        self._parts.append(f"<h2>{escape(text)}</h2>")
        return self

    def text(self, text: str, kind: str = "") -> Page:
        """A paragraph; ``kind`` is ``good``, ``bad`` or ``note``."""
        self._parts.append(f'<p class="{escape(kind)}">{escape(text)}</p>')
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Page:
        """A table; floats are shown with four digits, ``✓`` and ``✗`` in colour."""
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        return self

    def figure(self, svg: str) -> Page:
        """A picture of ``chart``; nothing when it is empty."""
        if svg:
            self._parts.append(f"<figure>{svg}</figure>")
        return self

    def render(self) -> str:
        """The page as HTML."""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self._title)}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{escape(self._title)}</h1>{''.join(self._parts)}</body></html>"
        )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"<td>{value:.4f}</td>"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td>{value:,}</td>"
    kind = {"✓": ' class="good"', "✗": ' class="bad"'}.get(str(value), "")
    return f"<td{kind}>{escape('' if value is None else str(value))}</td>"
