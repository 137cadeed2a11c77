"""Rows of one's own beside the built-in variants: a base variant, and what a row changes against it.

A file of rows is YAML, a mapping a row (sweeps/rows/ has two):

    no-entropy: {base: sgan, weights.entropy: 0}
    fresh-noise: {base: sgan, title: "Fresh noise", gan.fresh_noise: true, joint.fresh_noise: true}
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sgan.checks import ConfigError, require
from sgan.presets import VARIANTS, Row

NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,59}")


def value_of(text: str) -> Any:
    """A value on the command line: JSON, or else a plain word."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def assignment(text: str, option: str) -> tuple[str, Any]:
    """The name and value of FIELD=VALUE."""
    name, equals, value = text.partition("=")
    require(bool(equals and name), f"{option} takes FIELD=VALUE, but got {text!r}")
    return name, value_of(value)


def own_rows(files: Sequence[Path], given: Sequence[Sequence[str]]) -> dict[str, Row]:
    """The rows of --rows and --row by name.

    Raises:
        ConfigError: a file that cannot be read, or a row without a base, or with another's name.
    """
    found: dict[str, Row] = {}
    for path in files:
        try:
            content = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")), allow_nan=False))
        except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{path} of --rows cannot be read: {reason}") from error
        wanted = f"{path} of --rows must map the name of a row to its base and its fields, as in x: {{base: sgan}}"
        require(isinstance(content, dict) and bool(content), wanted)
        for name, fields in content.items():
            require(isinstance(fields, dict), f"{wanted}, but {name!r} is {fields!r:.99}")
            _add(found, name, fields, str(path))
    for name, *fields in given:
        _add(found, name, dict(assignment(field, f"--row {name}") for field in fields), "--row")
    return found


def _add(found: dict[str, Row], name: str, fields: Mapping[str, Any], where: str) -> None:
    require(
        NAME.fullmatch(name) is not None,
        f"{where}: the name of a row has letters, digits and . _ + -, at most 60, but got {name!r}",
    )
    require(name not in found, f"{where}: there are two rows of the name {name!r}; give one of them another")
    base, title = str(fields.get("base")), str(fields.get("title", name))
    require(base in VARIANTS, f"{where}: row {name} needs base, one of {', '.join(VARIANTS)}, but got {base!r}")
    changes = {field: value for field, value in fields.items() if field not in ("base", "title")}
    row = Row(title, changes, base)
    if name in VARIANTS:  # the same variant once more
        built_in = VARIANTS[name]
        require(
            row.variant == built_in.variant and changes.keys() <= row.of_variant.keys(),
            f"{where}: row {name} is not the built-in variant of that name; give it another name",
        )
        row = built_in
    found[name] = row


def as_option(name: str, row: Row) -> tuple[str, ...]:
    """A row as the words of --row."""
    title = {"title": row.title} if row.title != name else {}
    fields = {"base": row.base, **title, **row.changes}
    told = [f"{field}={value if isinstance(value, str) else json.dumps(value)}" for field, value in fields.items()]
    return name, *told
