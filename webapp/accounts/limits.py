"""How often a password may be tried: per account and per address, counted in the database.

A try is written down *before* the password is checked and forgotten when it was right, so a thousand tries at
once are counted like a thousand in a row.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import timedelta

from django.db.models import Count, DurationField, ExpressionWrapper, F, Min
from django.db.models.functions import Now

from webapp.accounts.models import LoginTry
from webapp.limits import LOGIN_FAILURES_PER_ACCOUNT, LOGIN_FAILURES_PER_ADDRESS, LOGIN_WINDOW_SECONDS

WINDOW = timedelta(seconds=LOGIN_WINDOW_SECONDS)


@dataclass(frozen=True, slots=True)
class Try:
    """A try that was written down. `refused`: there were too many before it, so do not even look at the
    password.
    """

    id: int
    account: str
    refused: bool
    wait_seconds: int


def account_key(username: str) -> str:
    return hashlib.sha256(username.casefold().encode(errors="replace")).hexdigest()


def address_key(address: str | None) -> str:
    """The address that is counted: an IPv6 customer has a /64, so that is one address. Empty for unix
    sockets.
    """
    if not address:
        return ""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def begin_try(username: str, remote_address: str | None) -> Try:
    """Write the try down and say whether it is one too many. Uses the database's clock."""
    account, address = account_key(username), address_key(remote_address)
    LoginTry.objects.filter(at__lt=Now() - WINDOW).delete()
    row = LoginTry.objects.create(account=account, address=address)
    recent = LoginTry.objects.filter(at__gte=Now() - WINDOW)
    wait = Min(ExpressionWrapper(F("at") + WINDOW - Now(), DurationField()))
    counts = [(recent.filter(account=account), LOGIN_FAILURES_PER_ACCOUNT)]
    if address:
        counts.append((recent.filter(address=address), LOGIN_FAILURES_PER_ADDRESS))
    waits = []
    for tries, most in counts:
        found = tries.aggregate(n=Count("id"), wait=wait)
        if found["n"] > most:
            waits.append(int(found["wait"].total_seconds()) + 1)
    if waits:
        # A refused try costs the guesser time already; counting it would let anyone keep an account shut for
        # ever.
        LoginTry.objects.filter(id=row.id).delete()
    return Try(row.id, account, bool(waits), max(waits, default=0))


def forget(tried: Try) -> None:
    """The password was right: this account's tries no longer count against it."""
    LoginTry.objects.filter(account=tried.account).delete()
