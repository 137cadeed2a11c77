"""What configurations are made of: checks whose errors name the value, and content keys."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from typing import Any


class ConfigError(ValueError):
    """A value that is not allowed; the message names the value, what is allowed and what to do."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def number(name: str, value: float, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Require a finite number in [low, high], or in (low, high] with open_low."""
    bounds = f"{'>' if open_low else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    inside = finite and (low < value <= high if open_low else low <= value <= high)
    require(inside, f"{name} must be a finite number {bounds}, but got {value}")


def plain_floats(row: Any) -> None:
    """Make 1 a 1.0 and -0.0 a 0.0 in the float fields of a frozen dataclass: equal values must have one content key."""
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if field.type is float and type(value) in (int, float):
            object.__setattr__(row, field.name, float(value) + 0.0)


def integer(name: str, value: int, low: int, high: float = math.inf) -> None:
    """Require a whole number in [low, high]."""
    bounds = f">= {low}" + (f" and <= {high:g}" if high < math.inf else "")
    require(type(value) is int and low <= value <= high, f"{name} must be a whole number {bounds}, but got {value}")


def as_json(value: Any) -> Any:
    """A dataclass as plain JSON values."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): as_json(item) for name, item in value.items()}
    return value


def content_key(value: Any) -> str:
    """16 hex digits of the SHA-256 of a value's canonical JSON: equal content, equal key."""
    text = json.dumps(as_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(kind: type, value: Any, path: str = "") -> Any:
    """The inverse of `as_json`: a frozen dataclass, which validates itself, from plain JSON values.

    Raises ConfigError, with the dotted name, where a field is missing, unknown or of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        require(isinstance(value, dict), f"{path or kind.__name__} must be an object with {', '.join(hints)}")
        odd = sorted(map(str, set(value) ^ set(hints)))
        require(not odd, f"{path or kind.__name__} must have the fields {', '.join(hints)}; look at {', '.join(odd)}")
        return kind(**{name: from_json(hint, value[name], f"{path}.{name}".strip(".")) for name, hint in hints.items()})
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (kind,) = (each for each in arguments if each is not type(None))
        return from_json(kind, value, path)
    if origin is tuple:
        require(isinstance(value, list), f"{path} must be a list, but got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        require(len(kinds) == len(value), f"{path} must have {len(kinds)} entries, but got {value!r}")
        return tuple(from_json(each, item, path) for each, item in zip(kinds, value, strict=True))
    if origin is typing.Literal:
        require(value in arguments, f"{path} must be one of {', '.join(map(repr, arguments))}, but got {value!r}")
        return value
    plain = type(value) is kind or (kind is float and type(value) is int)
    require(plain, f"{path} must be of type {kind.__name__}, but got {value!r}")
    try:
        return kind(value)
    except OverflowError as error:  # a whole number beyond any float
        raise ConfigError(f"{path} must be a finite number, but got {value!r:.40} ...") from error
