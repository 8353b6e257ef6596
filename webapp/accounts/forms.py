"""The password form, with its limits."""

from __future__ import annotations

import threading
from typing import Any

from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError

from webapp.accounts import limits
from webapp.limits import PASSWORD_CHECKS_AT_ONCE

# Argon2 takes its memory for every check under way.
_CHECKS = threading.BoundedSemaphore(PASSWORD_CHECKS_AT_ONCE)


class LoginForm(AuthenticationForm):
    """Name and password. After too many wrong ones it refuses without looking, and says for how long.

    The answer is the same for a wrong password and for a user who does not exist.
    """

    error_messages = {  # noqa: RUF012 (the shape of Django's forms)
        "invalid_login": "This name and password do not belong together. Check both; letter case counts.",
        "inactive": "This name and password do not belong together. Check both; letter case counts.",
    }

    def clean(self) -> dict[str, Any]:
        username, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if not username or not password:
            return self.cleaned_data
        address = self.request.META.get("REMOTE_ADDR") if self.request is not None else None
        tried = limits.begin_try(username, address)
        if tried.refused:
            minutes = -(-tried.wait_seconds // 60)
            raise ValidationError(
                f"Too many wrong passwords were tried. Wait {minutes} minutes, or ask an administrator for a "
                "login link.",
                code="too_many",
            )
        with _CHECKS:
            cleaned = super().clean()
        limits.forget(tried)
        return cleaned
