"""What the log says of a request holds no secret and steers no terminal."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from django.test import Client
from django.utils.log import configure_logging

import webapp.settings
from webapp.accounts.models import User
from webapp.accounts.services import create_login_link


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the settings' own handler writes."""
    configure_logging("logging.config.dictConfig", webapp.settings.LOGGING)
    (handler,) = [h for h in logging.getLogger().handlers if h.get_name() == "stderr"]
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    yield written
    handler.setStream(before)


def test_a_live_login_link_is_not_logged(db: None, log: io.StringIO) -> None:
    path = create_login_link(User.objects.create_user("ada"))
    secret = path.split("/")[2]
    assert Client(enforce_csrf_checks=True).post(path).status_code == 403  # the link is still good
    assert Client().get(path.rstrip("/") + "/x/").status_code == 404
    said = log.getvalue()
    assert "Forbidden (CSRF" in said
    assert secret not in said
    assert "/login/…/" in said
    assert "/login/…/x/" in said


def test_the_login_page_keeps_its_name(log: io.StringIO) -> None:
    logging.getLogger("webapp").warning("GET %s took long", "/login/?next=/p/")
    assert log.getvalue().endswith("GET /login/?next=/p/ took long\n")


def test_control_characters_are_visible(log: io.StringIO) -> None:
    logging.getLogger("webapp").warning("said %s", "\x1b[2Jwiped\n2026-01-01 INFO webapp forged\r\x9b")
    assert log.getvalue().endswith(r"said \x1b[2Jwiped\n2026-01-01 INFO webapp forged\r\x9b" + "\n")
    assert log.getvalue().count("\n") == 1


def test_a_traceback_keeps_its_lines_and_loses_its_controls(log: io.StringIO) -> None:
    try:
        raise ValueError("\x1b]0;pwned\x07 at /login/abcdefg/")
    except ValueError:
        logging.getLogger("webapp").exception("failed")
    lines = log.getvalue().splitlines()
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == r"ValueError: \x1b]0;pwned\x07 at /login/…/"
