"""The scripts that a page's module imports, told to the browser at once: `{% load modules %}`.

A browser learns what a module imports only when it has read it, and so asks in as many rounds as imports are
deep.
"""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path

from django import template
from django.contrib.staticfiles import finders
from django.templatetags.static import static
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

register = template.Library()

# Static imports alone: what is loaded when it is asked for is not needed yet.
_IMPORT = re.compile(r"""^(?:import|export)\b[^;"'(]*["'](\.[^"']+\.js)["'];?$""", re.MULTILINE)


@register.simple_tag
def module_preloads(entry: str) -> SafeString:
    """A `modulepreload` link for everything that `entry` (below the static folder) imports."""
    return format_html_join(
        "", '<link rel="modulepreload" href="{}">', ((static(name),) for name in imports_of(entry))
    )


@cache
def imports_of(entry: str) -> tuple[str, ...]:
    """All modules that `entry` needs before it runs, each once, nearest first. Raises FileNotFoundError."""
    found = {entry: None}
    waiting = [entry]
    for name in waiting:
        path = finders.find(name)
        if path is None:
            raise FileNotFoundError(f"There is no static file {name}, which {entry} imports.")
        for target in _IMPORT.findall(Path(path).read_text("utf-8")):
            imported = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            if imported not in found:
                found[imported] = None
                waiting.append(imported)
    return tuple(found)[1:]
