"""One file, values from the environment. A fresh clone runs with no environment at all (embedded parts,
loopback).
"""

from __future__ import annotations

import os
import secrets
import sys
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from webapp.embedded.folder import DataFolder
from webapp.limits import DATABASE_POOL_WAIT_SECONDS, DATABASE_RECONNECT_SECONDS, MAX_BODY_BYTES

BASE_DIR = Path(__file__).resolve().parent.parent
FOLDER = DataFolder.at(os.environ.get("ARBORIST_DATA_DIR") or BASE_DIR / ".arborist")
DATA_DIR = FOLDER.root


def _flag(name: str, default: bool = False) -> bool:
    text = os.environ.get(name, "1" if default else "0").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ImproperlyConfigured(f"{name}={text!r} is not a yes or no. Use 1 or 0.")


def _option(name: str) -> str:
    """The value of an option on this process's command line; "" when it is not there."""
    for place, word in enumerate(sys.argv):
        if word == name and place + 1 < len(sys.argv):
            return sys.argv[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def _count(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip() or str(default)
    if not (text.isascii() and text.isdecimal()):
        raise ImproperlyConfigured(f"{name}={text!r} is not a whole number of 0 or more.")
    return int(text)


POOL_CONNECTIONS = _count("ARBORIST_DATABASE_POOL", 0)  # 0: no pool
STATEMENT_SECONDS = _count("ARBORIST_STATEMENT_SECONDS", 0)  # 0: no limit

STALLED_SECONDS = _count("ARBORIST_STALLED_SECONDS", 600)  # without progress, then a run is shown as stalled
PROBE_MEMORY_MB = _count("ARBORIST_PROBE_MEMORY_MB", 0)  # of one probe's process; 0: half of the machine's


def _database(url: str) -> dict[str, object]:
    """`postgresql://user:password@host:port/name`; a unix socket folder goes in `?host=/folder`."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ImproperlyConfigured(
            f"ARBORIST_DATABASE_URL has scheme {parts.scheme!r}; Arborist needs PostgreSQL: postgresql://user@host/name"
        )
    query = dict(pair.split("=", 1) for pair in parts.query.split("&") if "=" in pair)
    return {
        "ENGINE": "webapp.database",
        "NAME": unquote(parts.path.lstrip("/")) or "arborist",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(query.get("host", parts.hostname or "")),
        "PORT": str(parts.port or query.get("port", "")),
        # A web process answers each request in another thread, so it shares connections through a pool;
        # `asgi.py` asks for one. Other processes keep one connection per thread.
        "CONN_MAX_AGE": 0 if POOL_CONNECTIONS else 60,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "connect_timeout": 5,
            "application_name": "arborist",
            # Of TCP, for connections that nobody waits on (`webapp.database` sees to the others).
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
            "options": "-c idle_in_transaction_session_timeout=60s "
            f"-c statement_timeout={STATEMENT_SECONDS}s",
            **(
                {
                    "pool": {
                        "min_size": 1,
                        "max_size": POOL_CONNECTIONS,
                        "timeout": DATABASE_POOL_WAIT_SECONDS,
                        # Its waits between attempts double up to this; it must not sleep on.
                        "reconnect_timeout": DATABASE_RECONNECT_SECONDS,
                    }
                }
                if POOL_CONNECTIONS
                else {}
            ),
        },
    }


DEBUG = _flag("ARBORIST_DEBUG")
# `manage.py up` stores a key for the site. Without one a process makes one up, which is fine for one process.
_stored_key = os.environ.get("ARBORIST_SECRET_KEY") or FOLDER.read_secret_key()
SECRET_KEY = _stored_key or secrets.token_urlsafe(50)
SECRET_KEY_IS_TEMPORARY = not _stored_key
# The loopback names always work: health checks come from the machine itself.
LOOPBACK_HOSTS = ["127.0.0.1", "localhost", "[::1]"]
CHOSEN_HOSTS = [
    host.strip() for host in os.environ.get("ARBORIST_ALLOWED_HOSTS", "").split(",") if host.strip()
]
ALLOWED_HOSTS = list(dict.fromkeys([*CHOSEN_HOSTS, *LOOPBACK_HOSTS]))
# Where the site listens, for the checks of `checks.py`: as said, or as uvicorn was told.
BIND_ADDRESS = (
    os.environ.get("ARBORIST_BIND") or os.environ.get("UVICORN_HOST") or _option("--host") or "127.0.0.1"
)
CSRF_TRUSTED_ORIGINS = [o for o in os.environ.get("ARBORIST_TRUSTED_ORIGINS", "").split(",") if o]

# Without addresses these are the sockets of the embedded servers, whether they run or not.
DATABASE_URL = os.environ.get("ARBORIST_DATABASE_URL") or FOLDER.database_url
DATABASES = {"default": _database(DATABASE_URL)}
BROKER_URL = os.environ.get("ARBORIST_BROKER_URL") or FOLDER.broker_url

# Where exports lie until they are fetched: web, sweeper and the workers of exports must share it.
EXPORT_DIR = Path(os.environ.get("ARBORIST_EXPORT_DIR") or DATA_DIR / "exports")

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "channels",
    "csp",
    "webapp.accounts",
    "webapp.projects",
    "webapp.runs",
    "webapp.queue",
    "webapp.trees",
    "webapp.problems",
    "webapp.exports",
    "webapp.imports",
    "webapp.probes",
    "webapp.verifications",
    "webapp.search",
    "webapp.saved",
    "webapp.notes",
    "webapp.live",
    "webapp.embedded",
]
AUTH_USER_MODEL = "accounts.User"

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "webapp.outages.OutageMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "webapp.accounts.middleware.LoginRequiredMiddleware",
    "webapp.projects.last.LastProjectMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "webapp.urls"
ASGI_APPLICATION = "webapp.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": False,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "webapp.context.shell",
            ],
            "libraries": {
                "arborist": "webapp.formatting",
                "modules": "webapp.modules",
                "notes": "webapp.notes.tags",
                "problems": "webapp.problems.strip",
            },
        },
    }
]

AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"

HTTPS = _flag("ARBORIST_HTTPS")  # the site is served over https: secure cookies and HSTS
SESSION_COOKIE_NAME = "__Host-session" if HTTPS else "arborist-session"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 12 * 3600
SESSION_SAVE_EVERY_REQUEST = False
# Behind a proxy that speaks https for us. Whoever reaches us past it gains nothing by claiming https.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_SSL_REDIRECT = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^healthz$"]  # asked by the machine itself
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "object-src": [NONE],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "form-action": [SELF],
        # HTML is parsed in one place (static/js/core/regions.js), under this name.
        "require-trusted-types-for": ["'script'"],
        "trusted-types": ["arborist"],
    }
}
CSRF_FAILURE_VIEW = "webapp.views.csrf_failure"
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_BODY_BYTES
DATA_UPLOAD_MAX_NUMBER_FIELDS = 500

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "webapp" / "static"]
STATIC_ROOT = DATA_DIR / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "webapp.static_storage.ModuleManifestStorage"},
}
# Until `collectstatic` ran, files are served from where they lie; whitenoise need not warn of that.
warnings.filterwarnings("ignore", "No directory at", UserWarning, r"django\.core\.handlers\.base")
# Nor Django that it reads such a file whole before it sends it: they are small.
warnings.filterwarnings(
    "ignore", "StreamingHttpResponse must consume", Warning, r"django\.core\.handlers\.asgi"
)
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_AUTOREFRESH = DEBUG

LANGUAGE_CODE = "en"
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# HSTS for subdomains and its preload list bind names that are not ours.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "webapp.log_lines.LineFormatter",
            "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": os.environ.get("ARBORIST_LOG_LEVEL", "INFO")},
}
