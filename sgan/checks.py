"""Dataclasses that check their values, errors that name the value, and content keys."""

import dataclasses
import difflib
import errno
import functools
import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import to_jsonable_python as as_json

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
OPEN = ConfigDict(extra="allow", strict=True)  # For a TypedDict that names required entries and allows others
Made = TypeVar("Made")
WAITED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)
"""Error numbers of a full or read-only disk, or a share that does not answer. Writers wait and try again."""


class ConfigError(ValueError):
    """A value that is not allowed; the message names the value, the allowed values and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def one_of(*choices: str) -> AfterValidator:
    """Return the annotation of a text field that allows only these values."""

    def check(value: str) -> str:
        require(value in choices, f"unknown value {value!r}; choose from {', '.join(choices)}")
        return value

    return AfterValidator(check)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def validated(label: Callable[[str], str] = str) -> Callable[[type[Made]], type[Made]]:
    """Decorator: make a frozen dataclass that raises ConfigError where a field breaks its type or bounds, or is NaN or
    inf. The check runs before `__post_init__`. `label`: function from a field's name to its name in messages."""

    def decorate(kind: type[Made]) -> type[Made]:
        made: Any = dataclass(kind, frozen=True, config=STRICT)
        initialize, names = made.__init__, [field.name for field in dataclasses.fields(made)]

        @functools.wraps(initialize)
        def __init__(self: Any, *values: Any, **fields: Any) -> None:
            try:
                initialize(self, *values, **fields)
            except ValidationError as error:
                raise ConfigError(_message(error, "", names, label)) from error

        made.__init__ = __init__
        return made

    return decorate


def _message(error: ValidationError, where: str, names: Sequence[str] = (), label: Callable[[str], str] = str) -> str:
    """Return the first error as one line with the field, the rule and the value. `names`: the dataclass's fields, since
    pydantic gives only the number of an argument that is passed by position."""
    first = error.errors(include_url=False)[0]
    place = [names[part] if names and isinstance(part, int) else str(part) for part in first["loc"][:1]]
    path = ".".join([*filter(None, [where]), *map(label, place), *map(str, first["loc"][1:])])
    if first["type"] == "value_error":
        cause = first.get("ctx", {}).get("error")
        return f"{path}: {cause}" if path else str(cause)
    if first["type"] in ("missing", "unexpected_keyword_argument"):
        return f"{path} is {'missing' if first['type'] == 'missing' else 'not a known field'}"
    rule, got = re.sub("^.*? should ", " must ", first["msg"]), first["input"]
    shown = repr(str(got) if isinstance(got, Path) else got)[:200]
    return f"{path or error.title}{rule if rule != first['msg'] else f': {rule}'}, but got {shown}"


_adapter = functools.cache(TypeAdapter)


def checked(kind: Any, value: Any, name: str = "") -> Any:
    """Return the value if it fits this annotated type or TypedDict; otherwise raise ConfigError with `name`."""
    try:
        return _adapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise ConfigError(_message(error, name)) from error


def from_json(kind: type[Made], value: Any, where: str = "") -> Made:
    """The inverse of `as_json`: build a dataclass from JSON values. ConfigError where a field is missing, unknown or
    invalid; the message gives its dotted name after `where`."""
    try:
        made = TypeAdapter(kind).validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        raise ConfigError(_message(error, where)) from error
    other = difference(as_json(made), value)
    require(other is None, f"{where}.{other[0] if other else ''} is missing".strip("."))  # no default replaces it
    return made


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict, such as a config, as dotted name -> value."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    inner = [flat(each, f"{prefix}.{name}".strip(".")) for name, each in value.items()]
    return {name: item for each in inner for name, item in each.items()}


def with_fields(made: Made, values: Mapping[str, Any], where: str) -> Made:
    """Return a copy of a dataclass with new values (plain JSON) in fields with these dotted names. A tuple of words may
    be written as one text: "pool1+fc3", or "none". ConfigError for an unknown field or an invalid value; the message
    begins with `where`."""
    plain = as_json(made)
    fields = flat(plain)
    for name, value in values.items():
        near = difflib.get_close_matches(name, fields, 1, cutoff=0.85)
        perhaps = f"; perhaps {near[0]}" if near else ""
        groups = [f"{each}.…" if isinstance(held, dict) else each for each, held in plain.items()]
        choices = [field for field in fields if field.split(".")[0] == name.split(".")[0]] or groups
        require(name in fields, f"{where}: no field {name!r}{perhaps}; choose from {', '.join(choices)}")
        *parents, last = name.split(".")
        words = isinstance(fields[name], list) and isinstance(value, str)
        inner = functools.reduce(operator.getitem, parents, plain)
        inner[last] = [word for word in value.split("+") if word != "none"] if words else value
    try:
        return from_json(type(made), plain)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def difference(first: Any, second: Any) -> tuple[str, Any, Any] | None:
    """Return the dotted name and both values of the first field in which two JSON values differ; None if none does. An
    empty dict counts as absent."""
    one, other = flat(first), flat(second)
    for name in one | other:
        values = one.get(name, "absent"), other.get(name, "absent")
        if values[0] != values[1]:
            return name, *values
    return None


def content_key(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a value's canonical JSON. Equal values have equal keys. ValueError for NaN
    and inf."""
    plain = json.loads(json.dumps(as_json(value), allow_nan=False), parse_float=lambda digits: float(digits) + 0.0)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))  # + 0.0 made -0.0 equal 0.0
    return hashlib.sha256(text.encode()).hexdigest()[:16]
