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
from webapp.limits import PASSWORD_CHECKS_AT_ONCE, TOKEN_DAYS, TOKEN_NAME_LETTERS, TOKENS_PER_USER

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
        if not self.errors and self.user.has_usable_password():
            self._check_old()
        return self.cleaned_data

    def _check_old(self) -> None:
        tried = limits.begin_try(self.user.get_username(), self.address)
        if tried.refused:
            minutes = -(-tried.wait_seconds // 60)
            raise ValidationError(f"Too many wrong passwords were tried. Wait {minutes} minutes.")
        with _CHECKS:
            is_right = self.user.check_password(self.cleaned_data.get("old") or "")
        if not is_right:
            self.add_error("old", "This is not your password now. Letter case counts.")
        else:
            limits.forget(tried)


class TokenForm(forms.Form):
    """What a new API token is for and may do."""

    name = forms.CharField(
        max_length=TOKEN_NAME_LETTERS,
        error_messages={"required": "Say what it is for, so that you know it again."},
    )
    write = forms.BooleanField(required=False)
    control = forms.BooleanField(required=False)
    project = forms.CharField(required=False)
    days = forms.TypedChoiceField(
        coerce=int,
        choices=[(7, "7 days"), (30, "30 days"), (90, "90 days"), (TOKEN_DAYS, "a year"), (0, "never")],
        error_messages={"required": "Choose when it ends.", "invalid_choice": "Choose when it ends."},
    )

    def __init__(self, user: User, projects: dict[str, int], data: Any = None) -> None:
        super().__init__(data)
        self.user, self.projects = user, projects

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
        return self.cleaned_data

    def scopes(self) -> list[ApiToken.Scope]:
        both = (ApiToken.Scope.WRITE, ApiToken.Scope.CONTROL)
        return [scope for scope in both if self.cleaned_data[str(scope)]]
