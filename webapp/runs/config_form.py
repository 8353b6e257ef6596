"""RunConfig's JSON schema as a form, and its errors as sentences beside the fields.

There is no list of fields here: a new knob in `trainer.config` shows up by itself. A field is named by its
path in the config, `sampler.depth`. Of a part that can be one of several kinds only the chosen kind's knobs
are shown; the choice is a field of its own, `sampler.kind`. Parts may stand in parts: `sampler.score.kind`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from typing import Any, Literal

from pydantic import ValidationError

from trainer.config import RunConfig
from trainer.schema.sampler import CUTS, why_no_cut
from trainer.text import storable

Schema = Mapping[str, Any]  # a JSON schema is open by nature
Options = Mapping[str, Sequence[tuple[str, str]]]
# "lines": a text that may have line breaks, and whose blanks at the ends count.
Kind = Literal["number", "integer", "text", "lines", "choice", "integers", "boolean"]

MAX_VALUE_LETTERS = 4096  # no text of a config may be longer
HIDDEN = ("schema_version", "preset")  # the page's address says which preset; the version is the program's


@dataclass(frozen=True, slots=True)
class FormField:
    """One knob. `value` is text, as typed; `minimum` and `maximum` are as far as the browser can check.

    `part`: the part inside its section that it belongs to, `credit.baseline`; "" for the section itself.
    `fixed`: it is shown and cannot be changed.
    """

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
    part: str = ""
    part_title: str = ""
    fixed: bool = False
    meanings: Mapping[str, Any] = field(
        default_factory=dict
    )  # of a choice: text -> config value, where they differ

    @property
    def is_on(self) -> bool:
        """Of a boolean: whether its box is ticked."""
        return self.value == "true"

    @property
    def told(self) -> str:
        """The value as a word, for a field that cannot be changed."""
        return self._word(self.value)

    @property
    def preset_told(self) -> str:
        return self._word(self.preset_value) or "nothing"

    def _word(self, value: str) -> str:
        if self.kind == "boolean":
            return "on" if value == "true" else "off"
        return dict(self.choices).get(value, value)


@dataclass(frozen=True, slots=True)
class FormGroup:
    """Fields that stand together. `head`: the choice that they belong to, if it is among these fields."""

    title: str
    head: FormField | None
    fields: list[FormField]


@dataclass(frozen=True, slots=True)
class FormSection:
    title: str
    slug: str
    description: str
    fixed: bool = False
    fields: list[FormField] = field(default_factory=list)
    advanced: list[FormField] = field(default_factory=list)

    @property
    def groups(self) -> list[FormGroup]:
        return _groups(self.fields)

    @property
    def advanced_groups(self) -> list[FormGroup]:
        return _groups(self.advanced)


def _groups(fields: Sequence[FormField]) -> list[FormGroup]:
    """Neighbours of the same part together; a part without knobs of its own is a plain field."""
    groups: list[FormGroup] = []
    for part, members in groupby(fields, lambda item: item.part):
        found = list(members)
        head = found[0] if found[0].path == f"{part}.kind" else None
        alone = not part or (head is not None and len(found) == 1)
        if not alone:
            groups.append(FormGroup(found[0].part_title, head, found[1:] if head else found))
        elif groups and not groups[-1].title:
            groups[-1].fields.extend(found)
        else:
            groups.append(FormGroup("", None, found))
    return groups


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
    """The kinds a part may be, by name, in the order of the union; empty when it is no union."""
    names = {ref: kind for kind, ref in schema.get("discriminator", {}).get("mapping", {}).items()}
    return {names[member["$ref"]]: _resolve(member) for member in schema.get("oneOf", ()) if names}


_CAPITALS = {"dpo", "ipo", "uct", "puct", "lora", "gsm8k", "chord", "k3", "cpu", "gpu", "jsonl", "ppo"}


def _title(name: str) -> str:
    return name.upper() if name in _CAPITALS else name.replace("_", " ").capitalize()


def kinds_of(section: str) -> list[tuple[str, str]]:
    """The kinds that a section may be, as a form's choices: `kinds_of("verifier")`."""
    return [(kind, _title(kind)) for kind in _variants(_resolve(_root()["properties"][section]))]


# ------------------------------------------------------------------------------------------------ form


def build_form(
    preset: RunConfig,
    *,
    typed: Mapping[str, str] | None = None,
    options: Options | None = None,
    errors: Sequence[ConfigError] = (),
    fixed: Collection[str] = (),
) -> list[FormSection]:
    """The form for a config that starts from `preset`, with what was typed so far.

    `options` turns a text field into a choice among what there is: {path: [(value, label)]}. `fixed`: the
    sections that are shown and cannot be changed.
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
        fields = list(_fields(_Place(name), schema, values[name], typed, options))
        is_fixed = name in fixed
        fields = [replace(item, error=_error_for(item.path, by_path), fixed=is_fixed) for item in fields]
        if not fields:
            continue
        is_part = resolved.get("type") == "object" or bool(_variants(resolved))
        if is_part:
            description = "" if _variants(resolved) else str(resolved.get("description", ""))
            section = FormSection(_title(name), name, description, is_fixed)
            sections.append(section)
        else:
            section = basics
        for item in fields:
            (section.advanced if item.advanced else section.fields).append(item)
    return [*([basics] if basics.fields or basics.advanced else []), *sections]


def kind_fields(preset: RunConfig, section: str, kind: str) -> list[FormField]:
    """The knobs of one kind that a section may be, without those for experts; of the preset's kind with its
    values.
    """
    value = getattr(preset, section).model_dump(mode="json")
    chosen = {f"{section}.kind": kind}
    fields = _fields(_Place(section), _root()["properties"][section], value, chosen, {})
    return [item for item in fields if item.path not in chosen and not item.advanced]


def _error_for(path: str, by_path: Mapping[str, str]) -> str:
    if path in by_path:
        return by_path[path]
    # An error in a list belongs to the list's field.
    return next((message for place, message in by_path.items() if place.startswith(f"{path}.")), "")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the config the walk stands; `part` as in `FormField`."""

    path: str
    advanced: bool = False
    part: str = ""
    part_title: str = ""


def _fields(
    place: _Place, schema: Schema, value: Any, typed: Mapping[str, str], options: Options
) -> Iterator[FormField]:
    """The fields of one place in the config, depth first. `value` is the preset's."""
    schema = _resolve(schema)
    place = replace(place, advanced=place.advanced or bool(schema.get("advanced", False)))
    if variants := _variants(schema):
        yield from _union(place, schema, variants, value, typed, options)
    elif schema.get("type") == "object":
        yield from _members(place, schema, value, typed, options)
    elif "const" not in schema:
        yield _leaf(place, schema, value, typed, options)


def _union(
    place: _Place,
    schema: Schema,
    variants: Mapping[str, Schema],
    value: Any,
    typed: Mapping[str, str],
    options: Options,
) -> Iterator[FormField]:
    """The choice among kinds, then the knobs of the chosen one: the preset's values if it has that kind too,
    else the kind's defaults."""
    path = place.path
    choices = options.get(f"{path}.kind") or [(name, _title(name)) for name in variants]
    kind = typed.get(f"{path}.kind", value["kind"])
    if kind not in [name for name, _ in choices]:
        kind = value["kind"]
    label = str(schema.get("title") or _title(path.rpartition(".")[2]))
    if "." in path:  # a part inside a section
        place = replace(place, part=path, part_title=f"{label}: {_title(kind)}")
    yield FormField(
        path=f"{path}.kind",
        id=_id(f"{path}.kind"),
        label=label,
        help=" ".join(
            filter(None, (str(schema.get("description", "")), str(variants[kind].get("description", ""))))
        ),
        unit="",
        kind="choice",
        value=kind,
        choices=choices,
        changed=kind != value["kind"],
        preset_value=value["kind"],
        advanced=place.advanced,
        part=place.part,
        part_title=place.part_title,
    )
    chosen = variants[kind]
    yield from _members(place, chosen, value if kind == value["kind"] else _defaults(chosen), typed, options)


def _members(
    place: _Place, schema: Schema, values: Mapping[str, Any], typed: Mapping[str, str], options: Options
) -> Iterator[FormField]:
    for name, member in schema.get("properties", {}).items():
        inside = replace(place, path=f"{place.path}.{name}")
        yield from _fields(inside, member, values.get(name), typed, options)


def _defaults(schema: Schema) -> dict[str, Any]:
    return {name: member.get("default", "") for name, member in schema["properties"].items()}


def _leaf(place: _Place, schema: Schema, value: Any, typed: Mapping[str, str], options: Options) -> FormField:
    path = place.path
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
    elif schema.get("type") in ("integer", "number", "boolean"):
        kind = schema["type"]
    else:
        kind = "lines" if "\n" in preset_value or "\n" in str(schema.get("default", "")) else "text"
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
        advanced=place.advanced,
        part=place.part,
        part_title=place.part_title,
        meanings=meanings,
    )


def _id(path: str) -> str:
    return "field-" + path.replace(".", "-")


def to_text(value: Any) -> str:
    """A config value as a form shows it: `4, 2, 2`, `0.0003`, `newline`, `true`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
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
        return float(text) if kind in ("integer", "number") else _as_typed(text, kind)
    except ValueError:
        return text


def _as_typed(text: str, kind: Kind) -> str:
    """What was meant: of a text with lines every letter, of all else no blanks around it. Browsers send line
    breaks as two letters."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if kind == "lines" else text.strip()


def _parts(text: str) -> list[str]:
    return text.replace(",", " ").split()


# ------------------------------------------------------------------------------------------------ reading


def read_form(preset: RunConfig, typed: Mapping[str, str], options: Options | None = None) -> dict[str, Any]:
    """What was typed, as a config to validate. What is not in the form keeps the preset's value.

    A part whose kind was changed gets that kind's defaults for knobs that were not in the form.
    """
    config: dict[str, Any] = {name: getattr(preset, name) for name in HIDDEN}
    for section in build_form(preset, typed=typed, options=options):
        for item in (*section.fields, *section.advanced):
            # One letter too many is kept, so that a text that is too long is refused and not cut.
            value: Any = storable(_as_typed(item.value, item.kind)[: MAX_VALUE_LETTERS + 1])
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
_NAMED = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*")


def linked_message(error: ConfigError, sections: Sequence[FormSection]) -> list[tuple[str, str]]:
    """The error's sentence in pieces: text, and the id of the field or section that the piece names, or "".

    A place is named by its path, `credit.scale`, or from within the section that the error is about, `scale`.
    """
    ids = {section.slug: f"section-{section.slug}" for section in sections}
    for section in sections:
        for item in (*section.fields, *section.advanced):
            ids[item.path] = item.id
            if item.path.endswith(".kind") and item.path.count(".") > 1:
                ids[item.path.removesuffix(".kind")] = item.id
    pieces: list[tuple[str, str]] = []
    done = 0
    for found in _NAMED.finditer(error.message):
        word = found[0]
        inside = f"{error.path}.{word}" if error.path else ""
        target = ids.get(inside) or ids.get(word, "")
        if target:
            pieces += [(error.message[done : found.start()], ""), (word, target)]
            done = found.end()
    pieces.append((error.message[done:], ""))
    return [piece for piece in pieces if piece[0]]


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
    if kind == "extra_forbidden" and path[:1] == ["sampler"] and label in CUTS:
        return why_no_cut(label)
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
    if schema.get("type") == "boolean":
        return "Use true or false."
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
