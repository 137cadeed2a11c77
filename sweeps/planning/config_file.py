"""best.yaml, the file that a search writes, and a config as words of sweeps/ablation.py's command line."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import yaml

from sgan.addresses import masked
from sgan.checks import ConfigError, as_json, from_json, one_of, require, validated
from sgan.command_line import python
from sgan.config import Config
from sgan.presets import VARIANTS
from sgan.store.files import write_text
from sgan.store.local import Store
from sweeps.planning.options import Data, Options, Stack, Sweep, Training, flag


@validated()
class ChosenOptions(Stack, Training, Data):
    """The options that define a config, besides variant and seed."""


BEST = "best.yaml"
CHOSEN = tuple(field.name for field in dataclasses.fields(ChosenOptions))


def words(options: Options) -> str:
    """The options of a config as words of a command line, without seeds and without those at their default."""
    parts = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == "row":
            parts += [word for row in value for word in (flag(field.name), *row)]
        elif field.name in (*CHOSEN, "data", "judge_weights", "variants", "rows") and value != field.default:
            values = value if isinstance(value, tuple) else (value,)  # a path is read from any folder
            parts += [flag(field.name), *(str(each.absolute() if isinstance(each, Path) else each) for each in values)]
    return shlex.join(parts)


@validated()
class BestConfig:
    """The content of best.yaml: the variant of a search, its options, the complete config of one of its seeds, and the
    `provenance`: study ("" where no search chose it), trial, commit and confirmed scores."""

    variant: Annotated[str, one_of(*VARIANTS)]
    options: ChosenOptions
    config: Config
    provenance: dict[str, Any]

    def __post_init__(self):
        require(isinstance(self.provenance.get("study"), str), f"provenance.study is missing: {self.provenance!r:.99}")


def read(path: Path) -> BestConfig:
    """Read a best.yaml. ConfigError, with the field and the commit, if it is damaged or from another version."""
    text = ""
    try:
        text = path.read_text()
        content = json.loads(json.dumps(yaml.safe_load(text), allow_nan=False))
        return from_json(BestConfig, content)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        commit = re.search(r"^  commit: (\S+)", text, re.MULTILINE)
        origin = f"; it was written by commit {commit[1]}: use that commit, or search again" if commit else ""
        raise ConfigError(f"{path} cannot be read as the config file of a search: {reason}{origin}") from error


def command(path: Path, store: Store, options: Options) -> str:
    """The command that runs the variants with the config of this file; `options`: those of the config."""
    parts = ["--config", str(path)]
    for each in ("data", "judge_weights"):  # best.yaml names no places of a machine
        parts += [flag(each), str(value.absolute())] if (value := getattr(options, each)) else []
    return f"{python('sweeps/ablation.py')} {shlex.join([*parts, '--store', masked(store.address)])}"


def write(store: Store, variant: str, options: Sweep, config: Config, provenance: dict[str, Any]) -> Path:
    """Write a store's best.yaml, completely or not at all; returns its path."""
    path, chosen = store.root / BEST, ChosenOptions(**{name: getattr(options, name) for name in CHOSEN})
    text = (
        "# The config that a search or sweeps/best.py has chosen. The paper's six variants with it:\n"
        "#   python sweeps/ablation.py --config FILE, with the path of this file\n"
    )
    content = as_json(BestConfig(variant, chosen, config, provenance))
    write_text(path, text + yaml.safe_dump(content, sort_keys=False, width=120))
    store.save(path)
    return path
