from __future__ import annotations

from django.apps import AppConfig


class VerificationsConfig(AppConfig):
    name = "webapp.verifications"
