"""The dialog "Branch here". What goes together is the service's to say; here words become numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms

from webapp.probes.services import Ask


class BranchForm(forms.Form):
    policy_version = forms.IntegerField(label="Checkpoint")
    beginning = forms.CharField(  # a form has a `prefix` of its own
        label="Beginning", required=False, strip=False, empty_value=""
    )
    n = forms.IntegerField(label="Continuations")
    temperature = forms.FloatField(label="Temperature")
    max_tokens = forms.IntegerField(label="Max tokens")
    verify = forms.BooleanField(label="Verify", required=False)
    seed = forms.IntegerField(label="Seed", required=False)
    idempotency_key = forms.CharField(required=False, max_length=64)

    def ask(self) -> Ask:
        """Of a valid form."""
        found: dict[str, Any] = dict(self.cleaned_data)
        prefix, key = found.pop("beginning"), found.pop("idempotency_key")
        return Ask(**found, prefix=prefix, idempotency_key=key or None)


def by_field(errors: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """A service's errors by the form's field."""
    return {{"prefix": "beginning"}.get(one["path"], one["path"]): one["message"] for one in errors}
