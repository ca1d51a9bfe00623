"""Numbers, durations and single lines of text for people; None and NaN become a dash."""

import math
import re

DASH = "\N{EN DASH}"
# C0 and C1 without line break and tab, marks and overrides of the direction of writing, line and
# paragraph separators, and halves of characters, which no encoding has.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
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


def short_duration(seconds: float) -> str:
    """4.2 -> 4.2s, 75 -> 1m15s, 4000 -> 1h06m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def with_interval(value: float | None, bounds: tuple[float, float] | None) -> str:
    """0.123, or 0.123 [0.100, 0.150] where there is an interval."""
    text = show(value)
    return text if bounds is None else f"{text} [{show(bounds[0])}, {show(bounds[1])}]"


def readable_bytes(num: float) -> str:
    """Bytes with a decimal unit: 999 bytes, 1.5 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num < 1000:
            return f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:.3g} TB"


def counted(number: int, noun: str) -> str:
    """1 trial, 2 trials, 1,000 trials."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def without_terminal_codes(text: str) -> str:
    """The text without the colour codes that tracebacks from workers carry."""
    return _TERMINAL_CODES.sub("", text)


def one_line(text: str) -> str:
    """The text on one line, without terminal codes."""
    return " ".join(without_terminal_codes(text).split())


def escaped(text: str) -> str:
    """The text with control characters escaped (\\x1b); line breaks and tabs are kept."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def clean(text: str) -> str:
    """The text on one line, with control characters escaped."""
    return " ".join(escaped(text).split())


def encodable(text: str, encoding: str) -> str:
    """The text with a question mark for every character that `encoding` lacks."""
    return text.encode(encoding, "replace").decode(encoding)


def inline(text: str) -> str:
    """Text that cannot end a table cell, a code span or a line."""
    return (
        one_line(text)
        .replace("`", "'")
        .replace("|", "/")
        .replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}")
        or DASH
    )
