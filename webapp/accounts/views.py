"""Logging in and out. A login link is used up by a POST alone, so that mail scanners and prefetching browsers
do not burn it.
"""

from __future__ import annotations

from django.contrib.auth import login
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods

from webapp.accounts import services
from webapp.accounts.forms import LoginForm

_REASONS = {
    "unknown": "This login link is not known here. Copy it whole, or ask for a new one.",
    "used": "This login link was used already; each works once.",
    "expired": "This login link is too old; each works for an hour.",
}


class Login(LoginView):
    """Name and password."""

    template_name = "accounts/login.html"
    authentication_form = LoginForm


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_variables("secret")
def login_link(request: HttpRequest, secret: str) -> HttpResponseBase:
    """GET shows a button, POST logs in once."""
    state = services.link_state(secret)
    if request.method == "POST" and state == "valid":
        user = services.use_login_link(secret)
        if user is not None:
            login(request, user, backend="django.contrib.auth.backends.ModelBackend")
            return redirect("home")
        state = "used"  # another tab was faster
    response: HttpResponse = render(
        request,
        "accounts/login_link.html",
        {"valid": state == "valid", "reason": _REASONS.get(state, "")},
        status=200 if state == "valid" else 410,
    )
    # The secret stands in this page's address, which therefore leaves to no other site. Not `no-referrer`:
    # under it browsers send the form with the origin "null", and the CSRF check refuses that.
    response["Referrer-Policy"] = "same-origin"
    return response
