"""What must be true of a place before Arborist serves from it, as Django system checks: each with an id and a
way out.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import DatabaseError, connections

POSTGRES_FLOOR = 15


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: an address, `localhost`, or a socket (empty, or a path)."""
    if host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@register(Tags.security)
def check_public_address(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 (Django calls it so)
    """`ARBORIST_BIND` says where the site listens; away from loopback nothing may be left to chance."""
    return public_address_errors(settings.BIND_ADDRESS)


def public_address_errors(host: str) -> list[CheckMessage]:
    """What is missing for serving on `host`. The launcher asks too, before it starts anything."""
    if is_loopback(host):
        return []
    found: list[CheckMessage] = []
    if settings.SECRET_KEY_IS_TEMPORARY:
        found.append(
            Error(
                f"The site would be served on {host} with a secret key that nobody chose.",
                hint="Set ARBORIST_SECRET_KEY to 50 random letters and keep it secret.",
                id="arborist.E001",
            )
        )
    if not settings.CHOSEN_HOSTS or "*" in settings.CHOSEN_HOSTS:
        found.append(
            Error(
                f"The site would be served on {host} without saying under which names.",
                hint="Set ARBORIST_ALLOWED_HOSTS to the names people type, separated by commas; not to `*`.",
                id="arborist.E002",
            )
        )
    if settings.DEBUG:
        found.append(
            Error(
                f"The site would be served on {host} with ARBORIST_DEBUG on, which shows code to visitors.",
                hint="Unset ARBORIST_DEBUG.",
                id="arborist.E003",
            )
        )
    return found


@register("arborist")
def check_data_folder(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:  # noqa: ARG001 (Django calls it so)
    folder = Path(settings.DATA_DIR)
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return []
    return [
        Error(
            f"The data folder {folder} cannot be written: {place} is not a folder of ours.",
            hint="Make it writable for this user, or set ARBORIST_DATA_DIR to a folder that is.",
            id="arborist.E004",
        )
    ]


@register(Tags.database)
def check_database(
    app_configs: Any,  # noqa: ARG001 (Django calls it so)
    databases: Sequence[str] | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection = connections[alias]
        try:
            connection.ensure_connection()
            version = connection.pg_version // 10000  # type: ignore[attr-defined]  # PostgreSQL is the only backend
        except DatabaseError as error:
            found.append(
                Error(
                    f"The database does not answer: {str(error).strip().splitlines()[0]}",
                    hint="Start it (`manage.py up` starts the embedded one), or set ARBORIST_DATABASE_URL.",
                    id="arborist.E005",
                )
            )
            continue
        if version < POSTGRES_FLOOR:
            found.append(
                Error(
                    f"The database is PostgreSQL {version}; Arborist needs {POSTGRES_FLOOR} or newer.",
                    hint="Upgrade it, or unset ARBORIST_DATABASE_URL to use the embedded one.",
                    id="arborist.E006",
                )
            )
    return found
