"""How shares are shown to people: in percent, wherever they are shown. Files that programs read hold 0..1."""

from __future__ import annotations

UNKNOWN = "–"


def percent(value: float | None) -> str:
    """0.8818 → `88.2`; what is not known is a dash."""
    return UNKNOWN if value is None else f"{100 * value:.1f}"


def percent_interval(value: float, low: float, high: float) -> str:
    """A share with its 95 % interval: `88.2 [85.2, 91.1]`."""
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def points(value: float) -> str:
    """A difference of two shares, in points: `+5.5`."""
    return f"{100 * value:+.1f}"


def points_interval(value: float, low: float, high: float) -> str:
    """A difference with its 95 % interval, `+5.5 [+1.4, +9.5]`; with a star where that leaves out 0."""
    star = "\\*" if low > 0 or high < 0 else ""
    return f"{points(value)} [{points(low)}, {points(high)}]{star}"
