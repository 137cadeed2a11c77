"""Custom rows beside the built-in variants: each has a base variant, and fields that it changes.

A file of rows is YAML, with a mapping for each row (sweeps/rows/ has two):

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

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,59}", re.ASCII)  # what MLflow takes in the name of a metric


def assignment(text: str, option: str) -> tuple[str, Any]:
    """The name and value of FIELD=VALUE; a value is JSON, or else a plain word."""
    name, equals, value = text.partition("=")
    require(bool(equals and name), f"{option} takes FIELD=VALUE, but got {text!r}")
    try:
        return name, value if name in ("base", "title") else json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def own_rows(files: Sequence[Path], given: Sequence[Sequence[str]]) -> dict[str, Row]:
    """The rows of --rows and --row by name. ConfigError for a file that cannot be read, and for a row without a base,
    or with the name of another row."""
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
    wanted = "the name of a row has letters, digits and . _ -, at most 60"
    require(bool(NAME.fullmatch(name)), f"{where}: {wanted}, but got {name!r}")
    require(name not in found, f"{where}: two rows have the name {name!r}; give one of them another name")
    base = str(fields.get("base", ""))
    got = f"got {base!r}" if base else "has none"
    require(base in VARIANTS, f"{where}: row {name} needs base, one of {', '.join(VARIANTS)}, but {got}")
    changes = {field: value for field, value in fields.items() if field not in ("base", "title")}
    row, built_in = Row(str(fields.get("title", name)), changes, base), VARIANTS.get(name)
    same = built_in is None or (row.variant == built_in.variant and changes.keys() <= row.of_variant.keys())
    require(same, f"{where}: row {name} is not the built-in variant of that name; give it another name")
    found[name] = built_in or row
