"""Numbers as the page and the terminal write them."""

import math

DASH = "–"
"""Shown if there is no value."""


def format_count(value: float) -> str:
    """Returns a whole number with commas: 12800 -> "12,800"."""
    return f"{value:,.0f}" if math.isfinite(value) else DASH


def decimal(value: float, places: int = 2) -> str:
    """Returns a number with `places` decimals, or a dash if it is not finite."""
    return f"{value:,.{places}f}" if math.isfinite(value) else DASH


def percent(share: float, places: int = 1) -> str:
    """Returns a share in percent: 0.4812 -> "48.1 %", with a no-break space."""
    return f"{100 * share:.{places}f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else DASH


def percent_of(count: float, total: float) -> str:
    """Returns count / total in percent, or a dash if the total is 0."""
    return percent(count / total) if total else DASH


def points(difference: float) -> str:
    """Returns a difference of shares in points: 0.122 -> "+12.2"; a true minus, no sign at zero."""
    rounded = round(100 * difference, 1)
    sign = "+" if rounded > 0 else "\N{MINUS SIGN}" if rounded < 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def share_interval(low: float, high: float) -> str:
    """Returns the interval of a share in percent: "[41.2, 54.9]"."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def change_interval(low: float, high: float) -> str:
    """Returns the interval of a difference in points: "[−3.2, +9.1]"."""
    return f"[{points(low)}, {points(high)}]"


def p_value(p: float) -> str:
    """Returns a p-value, with more digits near the usual levels: 0.00002 -> "< 0.0001"."""
    if p < 0.0001:
        return "<\N{NO-BREAK SPACE}0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: 372.4 -> "6 min 12 s"."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def count_of(count: int, noun: str) -> str:
    """Returns a count with its noun: 1, "task" -> "1 task"; 3, "task" -> "3 tasks"."""
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"
