"""Forms of a person's own account: logging in, the password, API tokens; each with its limits."""

from __future__ import annotations

import threading
from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError

from trainer.text import storable
from webapp.accounts import limits
from webapp.accounts.models import ApiToken, User
from webapp.accounts.services import live_tokens
from webapp.limits import (
    MAX_TOKEN_DAYS,
    PASSWORD_CHECKS_AT_ONCE,
    TOKEN_DAYS,
    TOKEN_NAME_LETTERS,
    TOKENS_PER_USER,
)

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


def _check_password(form: forms.Form, field: str, user: User, address: str | None) -> None:
    """That `field` holds the user's password; a wrong one counts as a wrong login does. Whoever has none, and
    logs in with links, is not asked.
    """
    if not user.has_usable_password():
        return
    tried = limits.begin_try(user.get_username(), address)
    if tried.refused:
        minutes = -(-tried.wait_seconds // 60)
        raise ValidationError(f"Too many wrong passwords were tried. Wait {minutes} minutes.")
    with _CHECKS:
        is_right = user.check_password(form.cleaned_data.get(field) or "")
    if is_right:
        limits.forget(tried)
    else:
        form.add_error(field, "This is not your password now. Letter case counts.")


class PasswordForm(forms.Form):
    """A new password, the old one first where there is one. Wrong old ones count as wrong logins do."""

    old = forms.CharField(strip=False, required=False)
    new = forms.CharField(strip=False, error_messages={"required": "Type the new password."})
    again = forms.CharField(strip=False, error_messages={"required": "Type the new password once more."})
    revoke = forms.BooleanField(required=False)

    def __init__(self, user: User, address: str | None, data: Any = None) -> None:
        super().__init__(data)
        self.user, self.address = user, address

    def clean_new(self) -> str:
        new = str(self.cleaned_data["new"])
        if new != storable(new) or "\x00" in new:
            raise ValidationError("The password holds a letter that cannot be kept. Use another.")
        validate_password(new, self.user)
        return new

    def clean(self) -> dict[str, Any]:
        new, again = self.cleaned_data.get("new"), self.cleaned_data.get("again")
        if new is not None and again is not None and new != again:
            self.add_error("again", "This is not the same as the new password. Type both again.")
        if not self.errors:
            _check_password(self, "old", self.user, self.address)
        return self.cleaned_data


class TokenForm(forms.Form):
    """What a new API token is for and may do, and until when. It outlives the session that makes it, so the
    password is asked for: a session that was left open or stolen makes none.
    """

    name = forms.CharField(
        max_length=TOKEN_NAME_LETTERS,
        error_messages={"required": "Say what it is for, so that you know it again."},
    )
    write = forms.BooleanField(required=False)
    control = forms.BooleanField(required=False)
    project = forms.CharField(required=False)
    days = forms.TypedChoiceField(
        coerce=int,
        choices=[
            (7, "7 days"),
            (30, "30 days"),
            (TOKEN_DAYS, f"{TOKEN_DAYS} days"),
            (MAX_TOKEN_DAYS, "a year"),
        ],
        initial=TOKEN_DAYS,
        error_messages={"required": "Choose when it ends.", "invalid_choice": "Choose when it ends."},
    )

    password = forms.CharField(strip=False, required=False)

    def __init__(self, user: User, projects: dict[str, int], address: str | None, data: Any = None) -> None:
        super().__init__(data)
        self.user, self.projects, self.address = user, projects, address

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        if not name.isprintable() or name != storable(name):
            raise ValidationError("The name holds a letter that cannot be shown. Use another.")
        return name

    def clean_project(self) -> int | None:
        slug = self.cleaned_data["project"]
        if not slug:
            return None
        if slug not in self.projects:
            raise ValidationError("Choose one of your projects, or all of them.")
        return self.projects[slug]

    def clean(self) -> dict[str, Any]:
        if live_tokens(self.user).count() >= TOKENS_PER_USER:
            raise ValidationError(
                f"You have {TOKENS_PER_USER} tokens already. Revoke one that is not needed."
            )
        if not self.errors:
            _check_password(self, "password", self.user, self.address)
        return self.cleaned_data

    def scopes(self) -> list[ApiToken.Scope]:
        both = (ApiToken.Scope.WRITE, ApiToken.Scope.CONTROL)
        return [scope for scope in both if self.cleaned_data[str(scope)]]
