"""Small charts as SVG: learning curves, calibration, lifts, importances. No script, font or library; dark pages follow.

Axes are linear or logarithmic, with few ticks; a band shows an interval. Anything richer belongs into Evidently or
MLflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44
_TEXT = 'font-size="11" fill="#64748b"'
_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#475569")


@dataclass(frozen=True)
class Series:
    """One line.

    :param name: for the legend.
    :param points: x and y of each point, in the order of x.
    :param band: low and high of y at each point; none when empty.
    :param dots: show the points.
    :param dashed: for a reference line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = field(default=())
    dots: bool = False
    dashed: bool = False


def line_chart(series: Sequence[Series], x_label: str, y_label: str, log_x: bool = False) -> str:
    """A chart as SVG text; empty when there is nothing finite to show.

    :param series: the lines.
    :param x_label: of the x axis.
    :param y_label: of the y axis.
    :param log_x: a logarithmic x axis; all x must be above 0.
    """
    shown = [s for s in series if s.points and all(math.isfinite(v) for point in s.points for v in point)]
    if not shown:
        return ""
    xs = [x for s in shown for x, _ in s.points]
    ys = [y for s in shown for _, y in s.points] + [
        v for s in shown for pair in s.band for v in pair if math.isfinite(v)
    ]
    x_axis, y_axis = _Axis(xs, _LEFT, WIDTH - _RIGHT, log_x), _Axis(ys, HEIGHT - _BOTTOM, _TOP, False)
    parts = [_frame(x_axis, y_axis, x_label, y_label)]
    for number, line in enumerate(shown):
        colour = _COLOURS[number % len(_COLOURS)]
        if line.band:
            lows = [(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]
            highs = [(x, high) for (x, _), (_, high) in zip(line.points, line.band, strict=True)]
            outline = " ".join(_at(x_axis, y_axis, point) for point in [*lows, *reversed(highs)])
            parts.append(f'<polygon points="{outline}" fill="{colour}" opacity="0.15"/>')
        path = " ".join(_at(x_axis, y_axis, point) for point in line.points)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if line.dots:
            parts += [
                f'<circle cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="3" fill="{colour}"/>'
                for x, y in line.points
            ]
        parts.append(
            f'<text x="{_LEFT + 8}" y="{_TOP + 14 + 16 * number}" fill="{colour}" font-size="12">'
            f"{escape(line.name)}</text>"
        )
    return _svg(HEIGHT, f"{y_label} by {x_label}", parts)


def bar_chart(bars: Sequence[tuple[str, float]], label: str) -> str:
    """Horizontal bars as SVG text, each with its name and value; empty when there are none.

    :param bars: name and value, at least 0, of each bar, from the top down.
    :param label: what the values are.
    """
    if not bars:
        return ""
    step, left = 22, 200
    longest = max(value for _, value in bars) or 1.0
    room = WIDTH - left - 72
    parts = []
    for number, (name, value) in enumerate(bars):
        y, width = number * step + 4, room * value / longest
        shown = name if len(name) <= 28 else name[:27] + "…"
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" {_TEXT}>{escape(shown)}</text>'
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{step - 6}" fill="{_COLOURS[0]}"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 13}" {_TEXT}>{_number(value)}</text>'
        )
    height = len(bars) * step + 24
    parts.append(f'<text x="{left}" y="{height - 6}" {_TEXT}>{escape(label)}</text>')
    return _svg(height, label, parts)


def _svg(height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui,sans-serif">{"".join(parts)}</svg>'
    )


class _Axis:
    """From values to places on the picture."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if not log and low == high:
            low, high = low - 0.5, high + 0.5
        margin = 0.0 if log else 0.05 * (high - low)
        self.low, self.high = low - margin, high + margin

    def place(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def ticks(self) -> list[float]:
        if self.log:
            steps = max(1, round(math.log2(self.high / self.low) / 6)) if self.high > self.low else 1
            count = int(math.log2(self.high / self.low) / steps + 1e-9) if self.high > self.low else 0
            return [self.low * 2 ** (steps * n) for n in range(count + 1)]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def _at(x_axis: _Axis, y_axis: _Axis, point: tuple[float, float]) -> str:
    return f"{x_axis.place(point[0]):.1f},{y_axis.place(point[1]):.1f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> str:
    grey = 'stroke="#94a3b8" stroke-opacity="0.35"'
    parts = []
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {grey}/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" {_TEXT}>{_number(tick)}</text>')
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle" {_TEXT}>{_number(tick)}</text>'
        )
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(
        f'<text x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle" {_TEXT}>{escape(x_label)}</text>'
        f'<text transform="translate(14,{middle}) rotate(-90)" text-anchor="middle" {_TEXT}>{escape(y_label)}</text>'
    )
    return "".join(parts)
