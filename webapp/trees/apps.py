from __future__ import annotations

from django.apps import AppConfig


class TreesConfig(AppConfig):
    name = "webapp.trees"
    label = "trees"
