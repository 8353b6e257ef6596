"""Which server to speak to, and as whom: from the environment, else from a file that nobody else can read."""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from client.errors import UsageError

URL, TOKEN, FILE = "ARBORIST_URL", "ARBORIST_TOKEN", "ARBORIST_CONFIG"


@dataclass(frozen=True, slots=True)
class Account:
    """`url` without a slash at its end; `project`: the one that is meant when none is named."""

    url: str
    token: str
    project: str = ""

    def __repr__(self) -> str:  # a traceback must not tell the token
        return f"Account({self.url!r})"


def config_file() -> Path:
    """`ARBORIST_CONFIG`, else `~/.config/arborist/config.toml`."""
    chosen = os.environ.get(FILE)
    if chosen:
        return Path(chosen)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "arborist" / "config.toml"


def account() -> Account:
    """The variables win over the file, whose token goes to no other server than the file's. Raises
    UsageError, with what to do, when something is missing.
    """
    kept = _from_file(config_file())
    url = os.environ.get(URL) or kept.get("url", "")
    token = os.environ.get(TOKEN) or kept.get("token", "")
    if not url or not token:
        missing = " and ".join(name for name, value in ((URL, url), (TOKEN, token)) if not value)
        raise UsageError(
            f"{missing} not set. Make a token on the site under Settings, API tokens; set the variables, or "
            f'write url = "https://…" and token = "arb_…" into {config_file()} (mode 0600).'
        )
    made_for = "" if os.environ.get(TOKEN) else kept.get("url", "")
    if made_for and url.rstrip("/") != made_for.rstrip("/"):
        raise UsageError(
            f"The token in {config_file()} is for {made_for}, and {URL} names {url[:200]}. Set {TOKEN}, too."
        )
    return Account(_checked(url), _printable(token), kept.get("project", ""))


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{url[:200]!r} is no address of a server. Write https://host or http://127.0.0.1:8000."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"The address has more than scheme, host, port and path: {parts.hostname}. Shorten it."
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(
            f"The token would travel to {parts.hostname} unencrypted, where others can read it. Use https://."
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine. A name such as 127.example.org may be anybody's."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _printable(token: str) -> str:
    token = token.strip()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("The token holds letters that no token has. Copy it again, whole.")
    return token


def _from_file(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            found = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if mode & 0o077 and "token" in found:
        raise UsageError(
            f"{path} holds a token and others may read it (mode {mode:04o}). Run: chmod 600 {path}"
        )
    unknown = sorted(found.keys() - {"url", "token", "project"})
    if unknown or not all(isinstance(value, str) for value in found.values()):
        what = f"the key {unknown[0]!r}" if unknown else "a value that is no text"
        raise UsageError(f"{path} has {what}; it takes url, token and project, each a text in quotes.")
    return found
