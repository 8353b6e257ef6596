from __future__ import annotations

from django.contrib.auth.views import LogoutView
from django.urls import path

from webapp.accounts import views

urlpatterns = [
    path("login/", views.Login.as_view(), name="login"),
    path("login/<str:secret>/", views.login_link, name="login-link"),
    path("logout/", LogoutView.as_view(next_page="login"), name="logout"),
]
