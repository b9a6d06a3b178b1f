"""Pictures of the pages as inline SVG: a year of nights, drift of columns by night, performance, a sampling curve.

Colours are classes of the pages' own style sheet, so that they follow its light and dark themes and no style stands in
the page; each picture has a name for those who do not see it, and what it shows also stands in a table or a title.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from airflow_provider_sml.ui.forms import Damaged, Day, Night, Point
from airflow_provider_sml.ui.markup import Content, tag

_CELL = 12
_LABELS = 120
Link = Callable[[str], str | None]


def year(nights: Sequence[Night | Damaged], link: Link) -> Markup:
    """A square for each night, by week and weekday.

    :param nights: newest first.
    :param link: address of a night's report by its day; None where there is none.
    """
    days = {day: night for night in nights if (day := _day_of(night)) is not None}
    if not days:
        return Markup("")
    first = min(days) - dt.timedelta(days=min(days).weekday())
    parts: list[Content] = []
    month = 0
    for day in sorted(days):
        week, night = (day - first).days // 7, days[day]
        if day.month != month and day.day <= 7:
            month = day.month
            parts.append(tag("text", day.strftime("%b"), x=week * _CELL + 30, y=10, class_="tick"))
        square = tag(
            "rect", tag("title", _told(night)), x=week * _CELL + 30, y=day.weekday() * _CELL + 16, width=_CELL - 2,
            height=_CELL - 2, rx=2, class_=f"square {kind_of(night)}",
        )  # fmt: skip
        address = link(day.isoformat())
        parts.append(tag("a", square, href=address, aria_label=_told(night)) if address else square)
    for weekday, name in ((0, "Mon"), (3, "Thu"), (6, "Sun")):
        parts.append(tag("text", name, x=0, y=weekday * _CELL + 25, class_="tick"))
    width = ((max(days) - first).days // 7 + 1) * _CELL + 32
    drifted = sum(kind_of(night) == "bad" for night in days.values())
    label = f"{len(days)} nights from {min(days)} to {max(days)}, {drifted} of drift; each night stands in the table"
    return _svg(width, 7 * _CELL + 18, label, parts, "group")


def heat_map(nights: Sequence[Night | Damaged], link: Link) -> Markup:
    """Columns by nights: how far each has moved, in parts of its limit.

    :param nights: newest first.
    :param link: address of a night's report by its day; None where there is none.
    """
    shown = [night for night in reversed(nights) if isinstance(night, Night)]
    columns: dict[str, int] = {}
    for night in shown:
        for column in night.columns:
            columns[column.name] = columns.get(column.name, 0) + column.drifted
    if not columns:
        return Markup("")
    names = sorted(columns, key=lambda name: (-columns[name], name))
    parts: list[Content] = []
    for row, name in enumerate(names):
        short = name if len(name) <= 18 else f"{name[:17]}…"
        parts.append(
            tag("text", tag("title", name), short, x=_LABELS - 6, y=row * _CELL + 26, text_anchor="end", class_="tick")
        )
    for place, night in enumerate(shown):
        x, found = _LABELS + place * _CELL, {column.name: column for column in night.columns}
        behind = tag("rect", x=x, y=16, width=_CELL, height=len(names) * _CELL, class_="behind")
        cells: list[Content] = [behind]
        for row, name in enumerate(names):
            if name not in found:
                continue
            column = found[name]
            said = f"{night.day} {name}: {_number(column.value)}, limit {_number(column.threshold)}"
            said += f" ({column.method})" if column.method else ""
            cells.append(
                tag("rect", tag("title", f"{said}{', drifted' if column.drifted else ''}"), x=x, y=row * _CELL + 16,
                    width=_CELL - 1, height=_CELL - 1, class_=_heat(column.value, column.threshold, column.drifted))
            )  # fmt: skip
        if night.day.day == 1 or place in (0, len(shown) - 1):
            end = "end" if place == len(shown) - 1 and place else "start"
            parts.append(tag("text", night.day.strftime("%d %b"), x=x + (_CELL if end == "end" else 0), y=10,
                             text_anchor=end, class_="tick"))  # fmt: skip
        address = link(night.day.isoformat())
        label = f"{night.day}: {night.verdict}"
        parts.append(tag("a", cells, href=address, aria_label=label) if address else tag("g", cells))
    label = f"Drift of {len(names)} columns over {len(shown)} nights; the numbers stand in the table"
    return _svg(_LABELS + len(shown) * _CELL + 4, len(names) * _CELL + 20, label, parts, "group")


def performance(realised: Mapping[dt.date, Day], estimated: Mapping[dt.date, Day], first: dt.date) -> Markup:
    """AUC of each day with its interval: realised, and expected where labels have not come.

    :param realised: by day.
    :param estimated: by day.
    :param first: first day that is shown.
    """
    real = sorted((day, one) for day, one in realised.items() if day >= first and _finite(one.auc))
    seen = {day for day, _ in real}
    told = sorted((day, one) for day, one in estimated.items() if day >= first and _finite(one.auc) and day not in seen)
    known = [one for _, one in [*real, *told]]
    if not known:
        return Markup("")
    ends = [value for one in known for value in (one.auc, one.auc_low, one.auc_high) if value is not None]
    start, end = min(one.day for one in known), max(one.day for one in known)
    frame = Frame((0, max(1, (end - start).days)), (min(ends), max(ends)))

    def marks(days: Sequence[tuple[dt.date, Day]], kind: str) -> list[Content]:
        made: list[Content] = []
        for day, one in days:
            x, y = frame.x((day - start).days), frame.y(one.auc or 0.0)
            low, high = one.auc_low, one.auc_high
            said = f"{day}: AUC {_number(one.auc)}"
            bar = None
            if _finite(low) and _finite(high):
                said += f" [{_number(low)}, {_number(high)}]"
                bar = tag("line", x1=x, x2=x, y1=frame.y(low or 0.0), y2=frame.y(high or 0.0), class_="bar")
            said += f", {kind}" + (f", version {one.version}" if one.version else "")
            made.append(tag("g", tag("title", said), bar, tag("circle", cx=x, cy=y, r=2.5), class_=kind))
        return made

    ticks = [start + dt.timedelta(days=round((end - start).days * part / 4)) for part in range(5)]
    parts = [
        frame.drawn("AUC", [((day - start).days, day.strftime("%d %b")) for day in sorted(set(ticks))]),
        marks(told, "estimated"), marks(real, "realised"),
        legend(("realised", "realised, 95 %"), ("estimated", "estimated, before labels")),
    ]  # fmt: skip
    label = f"AUC of {len(real)} days with labels and {len(told)} estimated ones, {start} to {end}"
    return _svg(frame.width, frame.height, label, parts)


def curve(points: Sequence[Point], chosen: float) -> Markup:
    """AUC by sampling rate.

    :param points: of the curve.
    :param chosen: the rate that was chosen.
    """
    shown = sorted((point for point in points if point.rate > 0 and _finite(point.auc)), key=lambda point: point.rate)
    if not shown:
        return Markup("")
    ends = [value for point in shown for value in (point.auc, point.low, point.high) if value is not None]
    scale = lambda rate: math.log2(rate)  # noqa: E731
    frame = Frame((scale(shown[0].rate), scale(shown[-1].rate)), (min(ends), max(ends)))
    line = " ".join(f"{frame.x(scale(point.rate))},{frame.y(point.auc)}" for point in shown)
    parts: list[Content] = [
        frame.drawn("AUC", [(scale(point.rate), f"{100 * point.rate:g} %") for point in shown]),
        tag("polyline", points=line, class_="line"),
    ]
    for point in shown:
        x = frame.x(scale(point.rate))
        bar = None
        if _finite(point.low) and _finite(point.high):
            bar = tag("line", x1=x, x2=x, y1=frame.y(point.low or 0.0), y2=frame.y(point.high or 0.0), class_="bar")
        said = f"{100 * point.rate:g} % of the rows ({point.rows:,.0f}): AUC {_number(point.auc)}"
        said += f", expected loss {point.loss:.4f}" if _finite(point.loss) else ""
        parts.append(
            tag("g", tag("title", said), bar, tag("circle", cx=x, cy=frame.y(point.auc), r=4 if _is(point, chosen)
                else 2.5), class_="chosen" if _is(point, chosen) else "realised")
        )  # fmt: skip
    return _svg(frame.width, frame.height, f"AUC by sampling rate; {100 * chosen:g} % was chosen", parts)


# --- parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """From values to places on a picture.

    :param xs: least and largest x.
    :param ys: least and largest y.
    """

    xs: tuple[float, float]
    ys: tuple[float, float]
    width: int = 720
    height: int = 220

    def x(self, value: float) -> str:
        """Its place from the left."""
        return f"{52 + (self.width - 76) * self._part(value, *self.xs):.1f}"

    def y(self, value: float) -> str:
        """Its place from the top."""
        return f"{self.height - 30 - (self.height - 60) * self._part(value, *self.ys):.1f}"

    def drawn(self, label: str, ticks: Sequence[tuple[float, str]]) -> list[Content]:
        """The axes."""
        low, high = self.ys
        digits, steps = _round_steps(low, high)
        rows = [
            [tag("line", x1=48, x2=self.width - 20, y1=self.y(step), y2=self.y(step), class_="grid"),
             tag("text", f"{step:.{digits}f}", x=42, y=float(self.y(step)) + 4, text_anchor="end", class_="tick")]
            for step in steps
        ]  # fmt: skip
        below = [
            tag("text", text, x=self.x(value), y=self.height - 10, text_anchor="middle", class_="tick")
            for value, text in ticks
        ]
        return [rows, below, tag("text", label, x=4, y=14, class_="tick")]

    @staticmethod
    def _part(value: float, low: float, high: float) -> float:
        return (value - low) / (high - low) if high > low else 0.5


def _round_steps(low: float, high: float) -> tuple[int, list[float]]:
    """Round values from one to another, and the digits that they need."""
    rough = max((high - low) / 5, 1e-4)
    power = math.floor(math.log10(rough))
    step = next(factor * 10**power for factor in (1, 2, 5, 10) if factor * 10**power >= rough)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return digits, [number * step for number in range(first, last + 1)]


def legend(*kinds: tuple[str, str]) -> list[Content]:
    """The names of what is drawn, by the class that draws it."""
    return [
        [tag("g", tag("circle", cx=64 + 170 * place, cy=10, r=3), class_=kind),
         tag("text", text, x=72 + 170 * place, y=14, class_="tick")]
        for place, (kind, text) in enumerate(kinds)
    ]  # fmt: skip


def kind_of(night: Night | Damaged) -> str:
    """The class of a night: ``good``, ``bad`` or ``warn``."""
    return {"quiet": "good", "drift": "bad"}.get(night.verdict, "warn") if isinstance(night, Night) else "warn"


def _told(night: Night | Damaged) -> str:
    if isinstance(night, Damaged):
        return f"{night.key}: unreadable"
    columns = f" ({', '.join(night.drifted[:8])})" if night.drifted else ""
    return f"{night.day}: {night.verdict}{columns}"


def _heat(value: float | None, limit: float | None, drifted: bool) -> str:
    """The class of a cell: h0 to h3 below the limit, h4 at it and above, h5 from twice of it on."""
    if not _finite(value) or not limit or value is None or not _finite(limit):
        return "heat h5" if drifted else "heat h0"
    part = value / limit
    step = 5 if part >= 2 else 4 if part >= 1 else min(3, int(part * 4))
    return f"heat h{step}" + ("" if drifted or step < 4 else " calm")


def _day_of(night: Night | Damaged) -> dt.date | None:
    if isinstance(night, Night):
        return night.day
    try:
        return dt.date.fromisoformat(night.key)
    except ValueError:
        return None


def _is(point: Point, rate: float) -> bool:
    return math.isclose(point.rate, rate)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None) -> str:
    return f"{value:.3f}" if value is not None and math.isfinite(value) else "–"  # noqa: RUF001


def _svg(width: int, height: int, label: str, parts: Content, role: str = "img") -> Markup:
    picture = tag("svg", parts, viewBox=f"0 0 {width} {height}", width=width, height=height, role=role,
                  aria_label=label, class_="picture")  # fmt: skip
    return tag("div", picture, class_="scroll bare")
