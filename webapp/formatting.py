"""How numbers, times and states read in templates (`{% load arborist %}`). What is missing is an em dash,
never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import conditional_escape, format_html, format_html_join
from django.utils.safestring import SafeString

register = template.Library()

MISSING = "—"
MINUS = "\u2212"

_HALF_UP = Context(prec=400, rounding=ROUND_HALF_UP)  # holds every float to its last digit

_GLYPHS = {
    "queued": "◷",
    "starting": "▷",
    "running": "▶",
    "stopping": "◧",
    "recovering": "↻",
    "paused": "‖",
    "pausing": "◧",
    "stalled": "△",
    "succeeded": "✓",
    "stopped": "■",
    "failed": "✕",
    "cancelled": "∅",
}


def _finite(value: Any) -> float | None:
    """`value` as a finite float, or None: templates hand over whatever there is."""
    if value is None or isinstance(value, bool | str):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _fixed(value: float, places: int, sign: str = "") -> str:
    """`value` as a browser's `toFixed` rounds it: 0.125 is 0.13 on the page and in what a script draws."""
    rounded = Decimal(value + 0.0).quantize(Decimal(1).scaleb(-places), context=_HALF_UP)
    return f"{rounded:{sign},.{places}f}"


@register.filter
def ticks(text: str) -> SafeString:
    """What stands between backticks as code; everything is escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one tick is missing: show what is there
        return conditional_escape(text)
    return format_html_join(
        "", "{}", ((format_html("<code>{}</code>", part) if n % 2 else part,) for n, part in enumerate(parts))
    )


@register.filter
def number(value: float | None, places: int | str = 3) -> str:
    """`0.4123` → `0.412`; thousands with thin commas; a true minus sign."""
    found = _finite(value)
    if found is None:
        return MISSING
    text = _fixed(found, int(places))
    if found and int(places) and not float(text.replace(",", "")):  # too small for that many places
        text = f"{found:.2e}"
    return text.replace("-", MINUS)


@register.filter
def signed(value: float | None, places: int | str = 3) -> str:
    """`0.4` → `+0.400`, `-0.4` → `−0.400`."""
    found = _finite(value)
    if found is None:
        return MISSING
    return _fixed(found, int(places), "+").replace("-", MINUS)


@register.filter
def percent(value: float | None, places: int | str = 0) -> str:
    """`0.563` → `56 %`."""
    found = _finite(value)
    return MISSING if found is None else f"{_fixed(100 * found, int(places))} %".replace("-", MINUS)


@register.filter
def compact(value: float | None) -> str:
    """A count in three figures at most: `980`, `21k`, `1.2M`."""
    found = _finite(value)
    if found is None:
        return MISSING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(found) >= 0.9995 * size:
            scaled = found / size
            return f"{scaled:.{1 if abs(scaled) < 9.95 else 0}f}{unit}".replace("-", MINUS)
    return f"{found:.0f}".replace("-", MINUS)


@register.filter
def duration(value: float | timedelta | None) -> str:
    """Seconds in the two largest units: `3 h 10 min`, `41 s`."""
    seconds = _finite(value.total_seconds() if isinstance(value, timedelta) else value)
    if seconds is None:
        return MISSING
    if seconds < 0:
        seconds = 0.0
    if seconds < 10:
        return f"{_fixed(seconds, 1)} s"
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next(index for index, (count, _) in enumerate(parts) if count)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count)


@register.filter
def roughly(seconds: float | None) -> str:
    """An estimate: a duration in two figures, `11 min 50 s`."""
    found = _finite(seconds)
    return duration(found if found is None else float(f"{found:.2g}"))


@register.filter
def short_time(seconds: float | None) -> str:
    """Of something quick: `0.2 ms`, `12 ms`, `2.1 s`."""
    found = _finite(seconds)
    if found is None or found >= 1:
        return duration(found)
    return f"{_fixed(1000 * found, 1 if found < 0.01 else 0)} ms"


@register.filter
def ago(value: datetime | None) -> str:
    """`3 h 10 min ago`."""
    if value is None:
        return MISSING
    seconds = (timezone.now() - value).total_seconds()
    return "just now" if seconds < 2 else f"{duration(seconds)} ago"


@register.filter
def status_glyph(status: str) -> str:
    return _GLYPHS.get(status, "?")


@register.filter
def status_word(status: str) -> str:
    return status.capitalize()


@register.filter
def action_label(action: str) -> str:
    """What its button says."""
    return action.replace("-", " ").capitalize()


@register.filter
def item(mapping: Mapping[str, Any] | None, key: str) -> Any:
    """`mapping[key]`, or None; for keys that are no template names, as `reward/mean`."""
    return None if mapping is None else mapping.get(key)
