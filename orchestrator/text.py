"""Numbers and times as a reader wants them; None and NaN are a dash."""

import math
import re

DASH = "\N{EN DASH}"
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def show(value: float | None) -> str:
    """About four significant digits: 0.123, 12.34, 123.4, 1,234; tiny ones as 1.2e-05."""
    if value is None or math.isnan(value):
        return DASH
    size = abs(value)
    if math.isinf(value) or (0 < size < 0.0005):
        return f"{value:.1e}"
    decimals = 3 if size < 9.9995 else 2 if size < 99.995 else 1 if size < 999.95 else 0
    return f"{value:,.{decimals}f}"


def duration(seconds: float | None) -> str:
    """4.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def counted(number: int, noun: str) -> str:
    """1 trial, 2 trials, 1,000 trials."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def without_terminal_codes(text: str) -> str:
    """The text without the colour codes that tracebacks from workers carry."""
    return _TERMINAL_CODES.sub("", text)


def one_line(text: str) -> str:
    """The text without line breaks and terminal codes."""
    return " ".join(without_terminal_codes(text).split())


def inline(text: str) -> str:
    """Text that cannot end a table cell, a code span or a line."""
    return (
        one_line(text)
        .replace("`", "'")
        .replace("|", "/")
        .replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}")
        or DASH
    )
