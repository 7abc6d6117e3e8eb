"""The one loader of configuration files: YAML into a pydantic model that knows every key."""

from __future__ import annotations

from inspect import isclass
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from hwnas.core.errors import InputError, UnknownNameError
from hwnas.core.files import read_text


class Config(BaseModel):
    """Base of every configuration: frozen, and a key that nobody reads is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        kinds = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kinds, *get_args(kinds)):
            raise ValueError("a number or a text is expected, not true or false")
        return value


C = TypeVar("C", bound=Config)


def load_config(path: str | Path, model: type[C]) -> C:
    """Read `path` as YAML into `model`; raises `InputError` that names the file, the key and the nearest known key."""
    try:
        text = read_text(path, "configuration")
        _refuse_repeated_keys(yaml.compose(text, yaml.SafeLoader), set())
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not readable as YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a configuration is a mapping of keys to values")
    return parse_config(values, model, str(path))


def _refuse_repeated_keys(node: yaml.Node | None, seen: set[int]) -> None:
    """Raise a YAML error for a key that stands twice in one mapping; the last would count, and nobody would know."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _refuse_repeated_keys(entry, seen)
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            keys.add((key.tag, str(key.value)))
            _refuse_repeated_keys(value, seen)


def parse_config(values: dict[str, object], model: type[C], where: str) -> C:
    """Validate a mapping as `model`; raises `InputError` with the first fault, one line."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            *within, name = map(str, first["loc"])
            unknown = UnknownNameError("key", name, _keys(model, within))
            raise InputError(": ".join([where, *within, str(unknown)])) from error
        said = first["msg"].removeprefix("Value error, ")
        got = f" (got {first.get('input')!r})" if key else ""
        raise InputError(": ".join(filter(None, [where, key, said[:1].lower() + said[1:]])) + got) from error


def _keys(model: type[BaseModel], within: list[str]) -> list[str]:
    """The keys of `model`, or of the configuration that stands in it under the keys `within`."""
    for key in within:
        field = model.model_fields.get(key)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((kind for kind in kinds if isclass(kind) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
