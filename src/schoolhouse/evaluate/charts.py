"""Charts as inline SVG: lines with interval bands, readable on a phone, coloured by the page so that dark mode works.

Colours are CSS variables of the page; every string is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 20, 40

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line. colour: the name of a CSS variable; band: for each x the low and high end of an interval."""

    name: str
    colour: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Axis:
    """A range and its labelled ticks."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""


@dataclass(frozen=True)
class Zone:
    """A shaded range of x with a label, like the levels that were taught."""

    low: float
    high: float
    label: str = field(default="")


def plot(series: Sequence[Series], x: Axis, y: Axis, label: str, zone: Zone | None = None) -> str:
    """One chart as an `<svg>` element. label: what a screen reader says."""
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">']
    parts += _zone(zone, x) if zone else []
    parts += _grid(x, y)
    parts += [_band(one, x, y) for one in series if one.band]
    parts += [_line(one, x, y) for one in series]
    parts.append("</svg>")
    return "".join(parts)


def share_axis(title: str = "") -> Axis:
    """0 to 100%."""
    return Axis(0.0, 1.0, [(v / 4, f"{25 * v}%") for v in range(5)], title)


def number_axis(values: Sequence[float], title: str = "", from_zero: bool = True) -> Axis:
    """An axis with round ticks that holds all values; 0 to 1 if there are none."""
    finite = [v for v in values if math.isfinite(v)]
    low = 0.0 if from_zero else min(finite, default=0.0)
    high = max(finite, default=1.0)
    high = high if high > low else low + 1
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], [(v, f"{v:,.10g}") for v in ticks], title)


def names_axis(names: Sequence[str], title: str = "") -> Axis:
    """One tick a name, at 0, 1, 2 and so on."""
    return Axis(-0.4, len(names) - 0.6, list(enumerate(names)), title)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value with up to `width - 1` before it."""
    out = []
    for i in range(len(values)):
        part = values[max(0, i - width + 1) : i + 1]
        out.append(sum(part) / len(part))
    return out


def thin(points: Sequence[Point], most: int = 240) -> list[Point]:
    """At most about `most` points, the last one always: a file need not hold what a screen cannot show."""
    stride = max(1, math.ceil(len(points) / most))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _at_x(x: Axis, value: float) -> float:
    return _LEFT + (value - x.low) / (x.high - x.low) * (WIDTH - _LEFT - _RIGHT)


def _at_y(y: Axis, value: float) -> float:
    inside = min(max(value, y.low), y.high)
    return HEIGHT - _BOTTOM - (inside - y.low) / (y.high - y.low) * (HEIGHT - _TOP - _BOTTOM)


def _zone(zone: Zone, x: Axis) -> list[str]:
    left, right = _at_x(x, max(zone.low, x.low)), _at_x(x, min(zone.high, x.high))
    return [
        f'<rect class="zone" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{HEIGHT - _TOP - _BOTTOM}"/>',
        f'<text class="zone-label" x="{left + 5:.1f}" y="{_TOP - 5}">{escape(zone.label)}</text>',
    ]


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value, text in y.ticks:
        at = _at_y(y, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at = _at_x(x, value)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    if x.title:
        parts.append(
            f'<text class="axis" x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x.title)}</text>'
        )
    return parts


def _band(one: Series, x: Axis, y: Axis) -> str:
    upper = [f"{_at_x(x, at):.1f},{_at_y(y, high):.1f}" for at, _, high in one.band]
    lower = [f"{_at_x(x, at):.1f},{_at_y(y, low):.1f}" for at, low, _ in reversed(one.band)]
    return f'<polygon class="band" style="--c:var(--{one.colour})" points="{" ".join(upper + lower)}"/>'


def _line(one: Series, x: Axis, y: Axis) -> str:
    places = [(_at_x(x, a), _at_y(y, b)) for a, b in one.points if math.isfinite(b)]
    classes = "line" + (" dashed" if one.dashed else "") + (" faint" if one.faint else "")
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    parts = [f'<polyline class="{classes}" points="{path}"><title>{escape(one.name)}</title></polyline>']
    if one.dots:
        for (a, b), point in zip(places, one.points, strict=True):
            said = escape(_say(one.name, point))
            parts.append(f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3.4"><title>{said}</title></circle>')
    return f'<g style="--c:var(--{one.colour})">{"".join(parts)}</g>'


def _say(name: str, point: Point) -> str:
    return f"{name}: {point[1]:.0%}" if 0 <= point[1] <= 1 else f"{name}: {point[1]:,.1f}"
