"""A run's config as a YAML file: reading it safely, saying what is wrong with it, writing it.

People write short YAML: what a file leaves out comes from its preset. YAML is read by version 1.2 rules
(`1e-5` is a number, `no` is a word), without aliases, tags or duplicate keys. Torch-free: the web app uses it
too.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import Node

from trainer.config import RunConfig
from trainer.presets import find_preset
from trainer.schema.sampler import CUTS, why_no_cut

MAX_CONFIG_BYTES = 256_000
MAX_NODES = 2000  # keys and values; a complete config has about 150
MAX_DEPTH = 20


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong: where (`training.learning_rate`; "" for the file as a whole), and what."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(ValueError):
    """A config is not usable; `problems` names every field at fault."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def one(cls, message: str, path: str = "") -> ConfigError:
        """With a single problem."""
        return cls([ConfigProblem(path, message)])


def config_from_yaml(content: bytes | str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config that a YAML text describes, `overrides` like `training.steps=20` applied last. Raises
    ConfigError.
    """
    mapping = parse_yaml(content)
    for override in overrides:
        _override(mapping, override)
    return config_from_mapping(mapping)


def config_from_mapping(given: Mapping[str, Any]) -> RunConfig:
    """The config that a mapping of plain values describes, the rest taken from its preset. Raises
    ConfigError.

    `Any`: whatever YAML or JSON holds; RunConfig checks it.
    """
    slug = given.get("preset", RunConfig.model_fields["preset"].default)
    try:
        preset = find_preset(slug)
    except AttributeError:
        raise ConfigError.one(f"there is no preset {slug!r}; its name is a text", "preset") from None
    except KeyError as error:
        raise ConfigError.one(str(error.args[0]), "preset") from None
    merged = _merged(preset.config.model_dump(mode="json"), {**given, "preset": preset.slug})
    try:
        # As strict JSON: a list counts as a tuple, but "3" does not count as 3, nor `true` as 1.
        return RunConfig.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        raise ConfigError(problems_from(error, merged)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError.one(f"the config holds a value that JSON cannot: {error}") from error


def config_to_yaml(config: RunConfig) -> str:
    """The complete config as YAML that `config_from_yaml` reads back to an equal one."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel types it None
    stream = io.StringIO()
    yaml.dump(_kinds_first(config.model_dump(mode="json")), stream)
    return stream.getvalue()


def _kinds_first(value: Any) -> Any:
    """A section says first what it is. `Any`: JSON."""
    if isinstance(value, list):
        return [_kinds_first(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _kinds_first(value[key]) for key in sorted(value, key=lambda key: key != "kind")}


def problems_from(error: ValidationError, data: Any) -> list[ConfigProblem]:
    """Pydantic's findings with the paths that a person wrote (without the names of union variants).

    `data` is what was validated. Messages give the value seen and, for an unknown key, the nearest known one.
    """
    found = []
    for detail in error.errors():
        path, known = _written_path(detail["loc"], data)
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden" and path in (f"sampler.{name}" for name in CUTS):
            message = why_no_cut(str(detail["loc"][-1]))
        elif detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
            message = (
                f"unknown key; did you mean `{near[0]}`?"
                if near
                else f"unknown key; known are {', '.join(known)}"
            )
        elif detail["type"] not in ("missing", "value_error") and isinstance(
            detail["input"], str | int | float | None
        ):
            message = f"{message[:1].lower()}{message[1:]} (got {_shown(detail['input'])})"
        found.append(ConfigProblem(path, message))
    return found


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _written_path(loc: tuple[int | str, ...], data: Any) -> tuple[str, list[str]]:
    """The path without union tags, and the keys known where it ends."""
    parts: list[str] = []
    model: Any = RunConfig
    here = data
    for part in loc:
        if isinstance(here, dict) and part not in here and part == here.get("kind"):
            continue  # the name of a union's variant
        known = _fields(model, here)
        parts.append(str(part))
        if isinstance(here, dict):
            here = here.get(str(part))
            field = known.get(str(part))
            model = field.annotation if field else None
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
    return ".".join(parts), list(known) if loc else []


def _fields(annotation: Any, value: Any) -> dict[str, Any]:
    """Fields of a section; of a union, those of the variant that `value` names. `Any`: annotations are any
    object.
    """
    kind = value.get("kind") if isinstance(value, dict) else None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            field = candidate.model_fields.get("kind")
            if field is None or field.default == kind:
                fields: dict[str, Any] = _kinds_first(dict(candidate.model_fields))
                return fields
    return {}


# ---------------------------------------------------------------------------------------------------- YAML


class _StrictComposer(Composer):
    """Refuses aliases, endless nesting and floods of nodes while it reads, before anything is built."""

    _nodes = 0
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Node | None:  # ruamel leaves both untyped
        if self.parser.check_event(AliasEvent):
            raise _refused(self.parser.peek_event().start_mark.line, "aliases (`*name`) are not allowed")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ConfigError.one(f"more than {MAX_NODES} keys and values; this is no run config")
        if self._depth > MAX_DEPTH:
            raise ConfigError.one(f"nested deeper than {MAX_DEPTH} levels; this is no run config")
        self._depth += 1
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def parse_yaml(content: bytes | str) -> dict[str, Any]:
    """One YAML 1.2 document that is a mapping of plain values. Raises ConfigError with line and column."""
    size = len(content) if isinstance(content, bytes) else len(content.encode("utf-8", "replace"))
    if size > MAX_CONFIG_BYTES:
        raise ConfigError.one(f"the file has {size:,} bytes; at most {MAX_CONFIG_BYTES:,} are read")
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError.one(f"not UTF-8 (byte {error.start + 1})") from error
    content = content.removeprefix("\ufeff")
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    yaml.allow_duplicate_keys = False
    yaml.Composer = _StrictComposer
    try:
        documents = list(_documents(yaml, content))
    except DuplicateKeyError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise _refused(line, f"{(error.problem or 'duplicate key').splitlines()[0]}") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError.one(f"{where}{what.splitlines()[0] if what else 'not YAML'}") from error
    except (YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        what = (str(error).splitlines() or ["not YAML"])[0]
        raise ConfigError.one(f"not YAML: {what}") from error
    if len(documents) > 1:
        raise ConfigError.one(f"{len(documents)} YAML documents; exactly one is expected")
    document = documents[0] if documents else {}
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigError.one(f"the file holds a {type(document).__name__}, expected keys and values")
    return document


def _documents(yaml: YAML, content: str) -> Iterator[Any]:
    for number, document in enumerate(yaml.load_all(content)):
        yield document
        if number:
            return  # two are already too many


def _refused(line: int, what: str) -> ConfigError:
    return ConfigError.one(f"line {line + 1}: {what}")


def _merged(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `base`, section by section; a section of another kind replaces the base's whole."""
    merged = dict(base)
    for key, value in given.items():
        below = base.get(key)
        merged[key] = value
        if isinstance(below, dict) and isinstance(value, Mapping):
            kind = below.get("kind")
            if value.get("kind", kind) == kind:
                merged[key] = _merged(below, value)
    return merged


def _override(mapping: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError.one(f"{override!r} is not of the form section.key=value")
    value = parse_yaml(f"value: {text}")["value"]
    here: Any = mapping
    for key in keys[:-1]:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise ConfigError.one(f"`{key}` is not a section", path)
    here[keys[-1]] = value
