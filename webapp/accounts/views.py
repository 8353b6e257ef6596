"""Logging in and out, and a person's own settings: password and API tokens. A login link is used up by a POST
alone, so that mail scanners and prefetching browsers do not burn it.
"""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth import login, update_session_auth_hash
from django.contrib.auth.views import LoginView
from django.db.models.functions import Now
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST

from webapp.accounts import services
from webapp.accounts.forms import LoginForm, PasswordForm, TokenForm
from webapp.accounts.models import ApiToken
from webapp.projects.access import projects_for, user_of

TOKENS_SHOWN = 200

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


# ------------------------------------------------------------------------------------------------ settings


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_post_parameters("password")
@sensitive_variables("secret", "form")
def tokens(request: HttpRequest) -> HttpResponse:
    """My API tokens; a POST makes one, and its page is the only one that ever shows it."""
    user = user_of(request)
    projects = list(projects_for(user))
    known = {project.slug: project.id for project in projects}
    secret, made = "", None
    address = request.META.get("REMOTE_ADDR")
    form = TokenForm(user, known, address, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        data = form.cleaned_data
        secret = services.create_token(
            user, data["name"], *form.scopes(), days=data["days"], project_id=data["project"]
        )
        made = services.find_token(secret, note_use=False)
        form = TokenForm(user, known, address)
    mine = ApiToken.objects.filter(user=user).select_related("project").order_by("-id")[:TOKENS_SHOWN]
    context = {
        "tab": "tokens",
        "form": form,
        "projects": projects,
        "secret": secret,
        "has_password": user.has_usable_password(),
        "made": made,
        "tokens": mine.annotate(now=Now()),
    }
    return render(request, "accounts/tokens.html", context, status=400 if form.errors else 200)


@require_POST
def token_revoke(request: HttpRequest, token_id: int) -> HttpResponseBase:
    """End one of my tokens at once. Twice changes nothing."""
    token = ApiToken.objects.filter(id=token_id, user=user_of(request)).first()
    if token is None:
        raise Http404
    ApiToken.objects.filter(id=token.id, revoked_at__isnull=True).update(revoked_at=Now())
    messages.success(request, f"The token {token.prefix}… is revoked. What still uses it gets 401.")
    return redirect("tokens")


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_post_parameters("old", "new", "again")
@sensitive_variables("form")
def password(request: HttpRequest) -> HttpResponseBase:
    """Change my password. Every other session ends, and tokens too where that is chosen."""
    user = user_of(request)
    form = PasswordForm(
        user, request.META.get("REMOTE_ADDR"), request.POST if request.method == "POST" else None
    )
    if request.method == "POST" and form.is_valid():
        revoke = form.cleaned_data["revoke"]
        services.change_password(user, form.cleaned_data["new"], revoke=revoke)
        update_session_auth_hash(request, user)
        ended = "Your other sessions have ended, and so have your API tokens." if revoke else ""
        ended = ended or "Your other sessions have ended. Your API tokens go on."
        messages.success(request, f"The password is changed. {ended}")
        return redirect("password")
    context = {
        "tab": "password",
        "form": form,
        "has_password": user.has_usable_password(),
        "n_tokens": services.live_tokens(user).count(),
    }
    return render(request, "accounts/password.html", context, status=400 if form.errors else 200)
