from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.urls import path
from django.views.generic import RedirectView

from webapp.accounts import views

urlpatterns = [
    path("login/", views.Login.as_view(), name="login"),
    path("login/<str:secret>/", views.login_link, name="login-link"),
    path("logout/", LogoutView.as_view(next_page="login"), name="logout"),
    path("settings/", RedirectView.as_view(pattern_name="tokens"), name="settings"),
    path("settings/tokens/", views.tokens, name="tokens"),
    path("settings/tokens/<int:token_id>/revoke", views.token_revoke, name="token-revoke"),
    path("settings/password/", views.password, name="password"),
]
