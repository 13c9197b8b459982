"""Numbers as a report writes them: one form for each kind, with a true minus sign."""

from __future__ import annotations

from collections.abc import Mapping

from lmmkit.runs.files import finite

MINUS, DASH, TIMES = "\u2212", "\u2013", "\u00d7"


def ends_of(value: Mapping[str, object]) -> tuple[float, float] | tuple[None, None]:
    """Returns the ends of the interval in a value of a file; None for both if one is not there."""
    low, high = finite(value.get("low")), finite(value.get("high"))
    return (None, None) if low is None or high is None else (low, high)


def in_percent(share: float | None) -> str:
    """Returns a share as "78.2"."""
    return DASH if share is None else _true_minus(f"{100 * share:z.1f}")


def in_points(difference: float) -> str:
    """Returns a difference of shares as "+0.3"; "0.0" has no sign."""
    text = f"{100 * difference:+.1f}"
    return text[1:] if float(text) == 0 else _true_minus(text)


def plain_number(value: float | None) -> str:
    """Returns a number with about four digits."""
    if value is None:
        return DASH
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1000:
        return _true_minus(f"{value:,.0f}")
    if size < 1e-3:
        return _true_minus(f"{value:.1e}")
    return _true_minus(f"{value:.3f}" if size < 10 else f"{value:.1f}")


def signed_number(value: float) -> str:
    """Returns a difference of numbers with its sign; "0" has none."""
    text = plain_number(value)
    return f"+{text}" if value > 0 and text != "0" else text


def in_words_of_size(n: float | None) -> str:
    """Returns a count as "1,500", "16 k", "1.47 M" or "7.06 G"."""
    if n is None:
        return DASH
    if n >= 1e9:
        return f"{n / 1e9:.2f} G"
    if n >= 1e6:
        return f"{n / 1e6:.2f} M"
    return f"{n / 1e3:.0f} k" if n >= 1e4 else f"{n:,.0f}"


def as_ratio(ratio: float) -> str:
    """Returns "\u00d7 2.23", or for what is nearly equal a change such as "+0.2 %"."""
    if abs(ratio - 1) < 0.05:
        return _true_minus(f"{100 * (ratio - 1):+.1f} %")
    return f"{TIMES} {ratio:.2f}"


def shown_name(text: str) -> str:
    """Returns a name without characters that do not show, such as those that turn the direction of what follows."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def in_words(names: list[str]) -> str:
    """Returns "a", "a and b" or "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _true_minus(text: str) -> str:
    return text.replace("-", MINUS)
