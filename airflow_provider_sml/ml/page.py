"""One small self-contained HTML page: headings, text, tables and line charts, everything escaped, no scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

_LIGHT = "color-scheme:light;--text:#1a1a1a;--back:#fff;--line:#ddd;--note:#666;--good:#18794e;--bad:#cd2b31"
_DARK = "color-scheme:dark;--text:#eee;--back:#111;--line:#333;--note:#a1a1aa;--good:#86efac;--bad:#fca5a5"
#: Columns that a table may align; further ones are text.
_COLUMNS = 16
# The address may ask for a theme, ``#dark`` or ``#light``, as the frame in Airflow's UI does, which has a theme of its
# own; else it is that of the reader's system.
_STYLE = f"""
:root{{{_LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}
:root:target{{{_DARK}}}:root:has(#light:target){{{_LIGHT}}}
body{{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:2rem 1rem;color:var(--text);
background:var(--back)}}.table{{overflow-x:auto;margin:1rem 0}}table{{border-collapse:collapse}}
th,td{{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}}
td{{font-size:14px;overflow-wrap:anywhere}}th,td:first-child{{overflow-wrap:normal}}
.good{{color:var(--good)}}.bad{{color:var(--bad)}}.note{{color:var(--note)}}
figure{{margin:1rem 0}}figure svg{{max-width:100%;height:auto}}
""" + "".join(
    f".n{n}>*>*>:nth-child({n}){{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}}"
    f".s{n}>*>*>:nth-child({n}){{white-space:nowrap}}"
    for n in range(1, _COLUMNS + 1)
)
#: A number with its unit of at most a few letters and its interval.
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e-?\d+)?( ?(%|[a-zA-Z]{1,3}))?( \[.*\])?")
#: Letters of a text that is kept on one line.
_SHORT = 24


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
        """A table; floats are shown with four digits, ``✓`` and ``✗`` in colour, columns of numbers to the right.

        Columns in which no row says anything are left out.
        """
        kept = [n for n in range(len(columns)) if not rows or any(row[n] not in (None, "") for row in rows)]
        head = "".join(f"<th>{escape(columns[n])}</th>" for n in kept)
        body = "".join("<tr>" + "".join(_cell(row[n]) for n in kept) + "</tr>" for row in rows)
        kinds = [_kind([row[n] for row in rows]) + str(place) for place, n in enumerate(kept, 1)]
        self._parts.append(
            f'<div class="table"><table class="{" ".join(kinds)}"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
        return self

    def figure(self, svg: str) -> Page:
        """A picture of ``chart``; nothing when it is empty."""
        if svg:
            self._parts.append(f"<figure>{svg}</figure>")
        return self

    def render(self) -> str:
        """The page as HTML."""
        return (
            f'<!doctype html><html lang="en" id="dark"><head><meta charset="utf-8"><title>{escape(self._title)}</title>'
            f'<style>{_STYLE}</style></head><body id="light"><h1>{escape(self._title)}</h1>'
            f"{''.join(self._parts)}</body></html>"
        )


def _kind(values: Sequence[Any]) -> str:
    """How a column is shown: ``n`` for numbers, ``s`` for short texts, ``t`` for others."""
    said = [value for value in values if value not in (None, "")]
    if said and all(not isinstance(value, bool) and (isinstance(value, int | float) or _NUMBER.fullmatch(str(value)))
           for value in said):  # fmt: skip
        return "n"
    return "s" if all(len(str(value)) <= _SHORT for value in said) else "t"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"<td>{value:.4f}</td>"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td>{value:,}</td>"
    kind = {"✓": ' class="good"', "✗": ' class="bad"'}.get(str(value), "")
    return f"<td{kind}>{escape('' if value is None else str(value))}</td>"
