"""RunConfig's JSON schema as a form, and its errors as sentences beside the fields.

There is no list of fields here: a new knob in `trainer.config` shows up by itself. A field is named by its
path in the config, `sampler.depth`. Of a part that can be one of several kinds only the chosen kind's knobs
are shown; the choice is a field of its own, `sampler.kind`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from pydantic import ValidationError

from trainer.config import RunConfig
from trainer.text import storable

Schema = Mapping[str, Any]  # a JSON schema is open by nature
Options = Mapping[str, Sequence[tuple[str, str]]]
Kind = Literal["number", "integer", "text", "choice", "integers"]

MAX_VALUE_LETTERS = 4096
HIDDEN = ("schema_version", "preset")  # the page's address says which preset; the version is the program's


@dataclass(frozen=True, slots=True)
class FormField:
    """One knob. `value` is text, as typed; `minimum` and `maximum` are as far as the browser can check."""

    path: str
    id: str
    label: str
    help: str
    unit: str
    kind: Kind
    value: str
    choices: Sequence[tuple[str, str]] = ()
    minimum: float | None = None
    maximum: float | None = None
    step: str = "any"
    error: str = ""
    changed: bool = False
    preset_value: str = ""
    advanced: bool = False
    meanings: Mapping[str, Any] = field(
        default_factory=dict
    )  # of a choice: text -> config value, where they differ


@dataclass(frozen=True, slots=True)
class FormSection:
    title: str
    slug: str
    description: str
    fields: list[FormField] = field(default_factory=list)
    advanced: list[FormField] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ConfigError:
    """`path` is a place in the config as people write it: `sampler.depth`; "" is the config as a whole."""

    path: str
    message: str

    def as_dict(self) -> dict[str, str]:
        return {"path": self.path, "message": self.message}


# ------------------------------------------------------------------------------------------------ schema


@cache
def _root() -> dict[str, Any]:
    return RunConfig.model_json_schema()


def _resolve(schema: Schema) -> Schema:
    """`schema` with its `$ref` followed; what stands beside the reference wins."""
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].removeprefix("#/$defs/")
    return {**_root()["$defs"][name], **{key: value for key, value in schema.items() if key != "$ref"}}


def _variants(schema: Schema) -> dict[str, Schema]:
    """The kinds a part may be, by name; empty when it is no union."""
    mapping = schema.get("discriminator", {}).get("mapping", {})
    return {kind: _resolve({"$ref": reference}) for kind, reference in mapping.items()}


def _known(schema: Schema) -> list[str]:
    return list(schema.get("properties", {}))


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


# ------------------------------------------------------------------------------------------------ form


def build_form(
    preset: RunConfig,
    *,
    typed: Mapping[str, str] | None = None,
    options: Options | None = None,
    errors: Sequence[ConfigError] = (),
) -> list[FormSection]:
    """The form for a config that starts from `preset`, with what was typed so far.

    `options` turns a text field into a choice among what there is: {path: [(value, label)]}.
    """
    typed, options = typed or {}, options or {}
    by_path: dict[str, str] = {}
    for error in errors:
        by_path.setdefault(error.path, error.message)
    values = preset.model_dump(mode="json")
    sections = []
    basics = FormSection("Run", "run", "")
    for name, schema in _root()["properties"].items():
        if name in HIDDEN:
            continue
        resolved = _resolve(schema)
        fields = list(_fields(name, schema, values[name], typed, options))
        fields = [replace(item, error=_error_for(item.path, by_path)) for item in fields]
        if not fields:
            continue
        is_part = resolved.get("type") == "object" or bool(_variants(resolved))
        if is_part:
            description = "" if _variants(resolved) else str(resolved.get("description", ""))
            section = FormSection(_title(name), name, description)
            sections.append(section)
        else:
            section = basics
        for item in fields:
            (section.advanced if item.advanced else section.fields).append(item)
    return [*([basics] if basics.fields or basics.advanced else []), *sections]


def _error_for(path: str, by_path: Mapping[str, str]) -> str:
    if path in by_path:
        return by_path[path]
    # An error in a list belongs to the list's field.
    return next((message for place, message in by_path.items() if place.startswith(f"{path}.")), "")


def _fields(
    path: str, schema: Schema, value: Any, typed: Mapping[str, str], options: Options, advanced: bool = False
) -> Iterator[FormField]:
    """The fields of one place in the config, depth first. `value` is the preset's."""
    schema = _resolve(schema)
    advanced = advanced or bool(schema.get("advanced", False))
    if variants := _variants(schema):
        choices = options.get(f"{path}.kind") or [(name, _title(name)) for name in variants]
        kind = typed.get(f"{path}.kind", value["kind"])
        if kind not in [name for name, _ in choices]:
            kind = value["kind"]
        yield FormField(
            path=f"{path}.kind",
            id=_id(f"{path}.kind"),
            label=str(schema.get("title") or _title(path.rpartition(".")[2])),
            help=" ".join(
                filter(None, (str(schema.get("description", "")), str(variants[kind].get("description", ""))))
            ),
            unit="",
            kind="choice",
            value=kind,
            choices=choices,
            changed=kind != value["kind"],
            preset_value=value["kind"],
            advanced=advanced,
        )
        chosen = variants[kind]
        defaults = value if kind == value["kind"] else _defaults(chosen)
        yield from _members(path, chosen, defaults, typed, options, advanced)
    elif schema.get("type") == "object":
        yield from _members(path, schema, value, typed, options, advanced)
    elif "const" not in schema:
        yield _leaf(path, schema, value, typed, options, advanced)


def _members(
    path: str,
    schema: Schema,
    values: Mapping[str, Any],
    typed: Mapping[str, str],
    options: Options,
    advanced: bool,
) -> Iterator[FormField]:
    for name, member in schema.get("properties", {}).items():
        yield from _fields(f"{path}.{name}", member, values.get(name), typed, options, advanced)


def _defaults(schema: Schema) -> dict[str, Any]:
    return {name: member.get("default", "") for name, member in schema["properties"].items()}


def _leaf(
    path: str, schema: Schema, value: Any, typed: Mapping[str, str], options: Options, advanced: bool
) -> FormField:
    preset_value = to_text(value)
    kind: Kind
    choices: Sequence[tuple[str, str]] = ()
    meanings: dict[str, Any] = {}
    if path in options:
        kind, choices = "choice", list(options[path])
        # What the preset says may be gone; it stays visible rather than being swapped in silence.
        if preset_value and preset_value not in [name for name, _ in choices]:
            choices = [(preset_value, f"{preset_value} (not available)"), *choices]
    elif "enum" in schema:
        kind, choices = "choice", [(to_text(name), _title(to_text(name))) for name in schema["enum"]]
        meanings = {to_text(name): name for name in schema["enum"] if not isinstance(name, str)}
    elif schema.get("type") == "array":
        kind = "integers"
    elif schema.get("type") in ("integer", "number"):
        kind = schema["type"]
    else:
        kind = "text"
    bounds = schema.get("items", {}) if kind == "integers" else schema
    shown = typed.get(path, preset_value)
    return FormField(
        path=path,
        id=_id(path),
        label=str(schema.get("title", path)),
        help="One of those that are known here." if path in options else str(schema.get("description", "")),
        unit=str(schema.get("unit", "")),
        kind=kind,
        value=shown,
        choices=choices,
        minimum=bounds.get("minimum", bounds.get("exclusiveMinimum")),
        maximum=bounds.get("maximum", bounds.get("exclusiveMaximum")),
        step="1" if kind == "integer" else "any",
        changed=_normal(shown, kind) != _normal(preset_value, kind),
        preset_value=preset_value,
        advanced=advanced,
        meanings=meanings,
    )


def _id(path: str) -> str:
    return "field-" + path.replace(".", "-")


def to_text(value: Any) -> str:
    """A config value as a form shows it: `4, 2, 2`, `0.0003`, `newline`."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(to_text, value))
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _normal(text: str, kind: Kind) -> object:
    """Equal for texts that mean the same: `3e-4` and `0.0003`, `4,2` and `4, 2`."""
    try:
        if kind == "integers":
            return [int(part) for part in _parts(text)]
        return float(text) if kind in ("integer", "number") else text
    except ValueError:
        return text


def _parts(text: str) -> list[str]:
    return text.replace(",", " ").split()


# ------------------------------------------------------------------------------------------------ reading a
# form


def read_form(preset: RunConfig, typed: Mapping[str, str], options: Options | None = None) -> dict[str, Any]:
    """What was typed, as a config to validate. What is not in the form keeps the preset's value.

    A part whose kind was changed gets that kind's defaults for knobs that were not in the form.
    """
    config: dict[str, Any] = {name: getattr(preset, name) for name in HIDDEN}
    for section in build_form(preset, typed=typed, options=options):
        for item in (*section.fields, *section.advanced):
            value: Any = storable(item.value.strip()[:MAX_VALUE_LETTERS])
            if item.kind == "integers":
                value = _parts(value)
            value = item.meanings.get(value, value) if item.meanings else value
            place = config
            *above, last = item.path.split(".")
            for name in above:
                place = place.setdefault(name, {})
            place[last] = value
    return config


def unseen_fields(
    preset: RunConfig, typed: Mapping[str, str], options: Options | None = None
) -> list[FormField]:
    """Knobs that belong to the kinds chosen, but were not in the form that was sent: people must see them
    first.
    """
    return [
        item
        for section in build_form(preset, typed=typed, options=options)
        for item in (*section.fields, *section.advanced)
        if item.path not in typed
    ]


# ------------------------------------------------------------------------------------------------ errors


MAX_ERRORS = 100


def config_errors(error: ValidationError) -> list[ConfigError]:
    """Pydantic's errors in our words: what was wrong, what is expected."""
    details = error.errors(include_url=False)
    shown = [_config_error(detail) for detail in details[:MAX_ERRORS]]
    if len(details) > MAX_ERRORS:
        shown.append(ConfigError("", f"And {len(details) - MAX_ERRORS:,} more. Correct these first."))
    return shown


def _config_error(
    detail: Any,
) -> ConfigError:  # pydantic's ErrorDetails, whose `input` and `ctx` can be anything
    schema: Schema = _root()
    path: list[str] = []
    for part in detail["loc"]:
        variants = _variants(schema)
        if variants and part in variants and not (path and path[-1] == part):
            schema = variants[str(part)]  # the kind's tag stands in pydantic's location, not in the config
            continue
        path.append(str(part))
        if schema.get("type") == "array":
            schema = schema.get("items", {})
        else:
            schema = _resolve(schema.get("properties", {}).get(str(part), {}))
    return ConfigError(".".join(path)[:200], _sentence(detail, schema, path))


def _sentence(detail: Any, schema: Schema, path: list[str]) -> str:
    kind, seen = detail["type"], _seen(detail["input"])
    label = path[-1][:80] if path else "the config"
    if label.isdecimal() and len(path) > 1:
        label = f"number {int(label) + 1} of {path[-2]}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"There is no setting {label!r} here. Check its spelling and its place."
    if kind == "missing":
        return f"{label} is missing. {_expected(schema)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = ", ".join(_variants(schema))
        given = "no `kind`" if kind == "union_tag_not_found" else f"kind {_seen(detail['ctx']['tag'])}"
        return f"{label} has {given}. Use one of: {kinds}."
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{label} is {seen}; it must be a group of settings, an object."
    if kind == "finite_number":
        return f"{label} is {seen}, which is not a finite number. {_expected(schema)}"
    if kind.startswith(
        ("greater_than", "less_than", "int_", "float_", "literal_error", "bool", "tuple", "too_", "string")
    ):
        return f"{label} is {seen}. {_expected(schema)}"
    return f"{label}: {detail['msg']}."


def _seen(value: Any) -> str:
    if isinstance(value, str):
        text = storable(value)
        return "empty" if not text else f"“{text[:60]}…”" if len(text) > 60 else f"“{text}”"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)[:60]
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "an object"


def _expected(schema: Schema) -> str:
    """`Use a whole number from 1 to 16.`"""
    if "enum" in schema:
        return f"Use one of: {', '.join(map(to_text, schema['enum']))}."
    if "const" in schema:
        return f"It must be {to_text(schema['const'])}."
    if schema.get("type") == "array":
        inner = _expected(schema.get("items", {})).removeprefix("Use a ").removesuffix(".")
        least, most = schema.get("minItems", 0), schema.get("maxItems", "any number of")
        return f"Use {least} to {most} numbers, each a {inner}."
    noun = {"integer": "a whole number", "number": "a number", "string": "a text"}.get(
        str(schema.get("type")), "a value"
    )
    if noun == "a text":
        most = schema.get("maxLength")
        if "pattern" in schema:
            return f"Use a text of the form {schema['pattern']}."
        return f"Use a text of {schema.get('minLength', 0)} to {most} letters." if most else "Use a text."
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"Use {noun} from {low:,} to {high:,}."
    bounds = [
        f"{word} {bound:,}"
        for word, bound in (("of at least", low), ("above", above), ("up to", high), ("below", below))
        if bound is not None
    ]
    return f"Use {noun} {' and '.join(bounds)}.".replace(" .", ".")
