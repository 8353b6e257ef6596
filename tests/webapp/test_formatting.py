from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.template import Context, Engine
from pytest_django import Settings

from webapp import formatting
from webapp.runs.models import RunStatus
from webapp.static_storage import ModuleManifestStorage

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "places", "shown"),
    [
        (0.41234, 3, "0.412"),
        (12345.6, 0, "12,346"),
        (-0.5, 1, "−0.5"),
        (0, 2, "0.00"),
        (0.00001, 3, "1.00e−05"),
        (0.3, 0, "0"),
        (0.125, 2, "0.13"),  # as `toFixed` rounds
        (1.005, 2, "1.00"),  # a little less than it looks
        (2.0**90, 1, f"{2**90:,}.0"),
        (None, 3, "—"),
        (NAN, 3, "—"),
        (INF, 3, "—"),
        ("", 3, "—"),
        ("<b>", 3, "—"),
        (True, 3, "—"),
    ],
)
def test_number(value: Any, places: int, shown: str) -> None:
    assert formatting.number(value, places) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.4, "+0.40"),
        (-0.125, "−0.13"),
        (-0.0, "+0.00"),
        (-0.4, "−0.40"),
        (0.0, "+0.00"),
        (None, "—"),
        (NAN, "—"),
    ],
)
def test_signed(value: Any, shown: str) -> None:
    assert formatting.signed(value, 2) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.563, "56 %"), (0.125, "13 %"), (1, "100 %"), (None, "—"), (NAN, "—")]
)
def test_percent(value: Any, shown: str) -> None:
    assert formatting.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "—"),
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (9949, "9.9k"),
        (21_400, "21k"),
        (999_600, "1.0M"),
        (12_000_000, "12M"),
    ],
)
def test_compact(value: Any, shown: str) -> None:
    assert formatting.compact(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.99, "10.0 s"),
        (10, "10 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (11_400, "3 h 10 min"),
        (90_000, "1 d 1 h"),
        (-3, "0.0 s"),
        (None, "—"),
        (INF, "—"),
        (timedelta(minutes=2), "2 min"),
    ],
)
def test_duration(seconds: Any, shown: str) -> None:
    assert formatting.duration(seconds) == shown


def test_ago() -> None:
    assert formatting.ago(datetime.now(UTC) - timedelta(hours=3, minutes=10)) == "3 h 10 min ago"
    assert formatting.ago(datetime.now(UTC) + timedelta(seconds=5)) == "just now"
    assert formatting.ago(None) == "—"


def test_every_status_has_a_glyph_of_its_own() -> None:
    glyphs = [formatting.status_glyph(status) for status in RunStatus.values]
    assert "?" not in glyphs
    assert len(set(glyphs)) == len(glyphs)
    assert formatting.status_word("queued") == "Queued"


def test_filters_escape_nothing_away() -> None:
    engine = Engine(libraries={"arborist": "webapp.formatting"})
    template = engine.from_string(
        '{% load arborist %}{{ d|item:"a/b"|number:1 }} {{ d|item:"x"|number:1 }} {{ d|item:"h" }}'
    )
    assert template.render(Context({"d": {"a/b": 1.25, "h": "<b>"}})) == "1.3 — &lt;b&gt;"


@pytest.mark.django_db
def test_modules_import_each_other_by_hashed_names_after_collectstatic(
    settings: Settings, tmp_path: Any
) -> None:
    source = tmp_path / "source" / "js"
    source.mkdir(parents=True)
    (source / "a.js").write_text('import { b } from "./b.js";\nb();\n')
    (source / "b.js").write_text("export function b() {}\n")
    settings.STATICFILES_DIRS = [tmp_path / "source"]
    settings.STATIC_ROOT = tmp_path / "root"
    assert ModuleManifestStorage(location=tmp_path / "root").url("js/a.js") == "/static/js/a.js"
    call_command("collectstatic", "--noinput", verbosity=0)
    storage = ModuleManifestStorage(location=tmp_path / "root")
    hashed = storage.url("js/a.js")
    assert hashed.startswith("/static/js/a.")
    assert hashed != "/static/js/a.js"
    text = (tmp_path / "root" / hashed.removeprefix("/static/")).read_text()
    assert storage.url("js/b.js").rpartition("/")[2] in text


def test_the_storage_in_use_is_ours() -> None:
    assert settings.STORAGES["staticfiles"]["BACKEND"] == "webapp.static_storage.ModuleManifestStorage"


def test_what_stands_between_ticks_is_code_and_everything_is_escaped() -> None:
    assert formatting.ticks("use `a<b` & `c`") == "use <code>a&lt;b</code> &amp; <code>c</code>"
    assert formatting.ticks("<b>") == "&lt;b&gt;"
    assert formatting.ticks("one ` only <b>") == "one ` only &lt;b&gt;"
    assert formatting.ticks("") == ""
