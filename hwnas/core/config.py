"""The one loader of configuration files: YAML into a pydantic model that knows every key."""

from __future__ import annotations

import reprlib
from inspect import isclass
from pathlib import Path
from typing import Any, TypeVar, get_args

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

YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError)
"""What PyYAML raises for one broken text or another, such as the date 2020-13-45."""
MOST_VALUES = 100_000


def load_config(path: str | Path, model: type[C]) -> C:
    """Read `path` as YAML into `model`; raises `InputError` that names the file, the key and the nearest known key."""
    return parse_config(read_yaml(path, "configuration"), model, str(path))


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """A mapping in YAML; raises `InputError` with the file and the line where it is missing, broken or no mapping."""
    try:
        text = read_text(path, what)
        _check(yaml.compose(text, yaml.SafeLoader), {})
        values = yaml.safe_load(text)
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}{line}: not readable as YAML: {reason}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a {what} is a mapping of keys to values")
    return values


def _check(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """How many values `node` stands for, aliases written out; `sizes` holds those that are known.

    Raises a YAML error for too many, and for a key that stands twice in one mapping: the last would count, and nobody
    would know.
    """
    if node is None or id(node) in sizes:
        return sizes.get(id(node), 0)
    size, keys = 1, set()
    for entry in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            keys.add((key.tag, key.value))
        size += _check(value, sizes)
    if size > MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"it holds more than {MOST_VALUES} values", problem_mark=node.start_mark)
    sizes[id(node)] = size
    return size


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
        got = f" (got {reprlib.repr(first.get('input'))})" if key and first["type"] != "missing" else ""
        raise InputError(": ".join(filter(None, [where, key, said[:1].lower() + said[1:]])) + got) from error


def _keys(model: type[BaseModel], within: list[str]) -> list[str]:
    """The keys of `model`, or of the configuration that stands in it under the keys `within`."""
    for key in within:
        field = model.model_fields.get(key)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((kind for kind in kinds if isclass(kind) and issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
