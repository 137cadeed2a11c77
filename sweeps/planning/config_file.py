"""A config as options of sweeps/ablation.py: on its command line, and in the file that a search leaves (best.yaml)."""

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgan.checks import ConfigError, as_json, from_json, require
from sgan.config import Config
from sgan.presets import VARIANTS
from sweeps.planning.ablation_options import Sweep
from sweeps.planning.options import DEFAULT_CUTS, Basis, Options

CHOSEN = (
    "dataset",
    "image_size",
    "channels",
    "recipe",
    "cuts",
    "weights",
    "override",
    "budget",
    "width",
    "scorer",
)
"""The options that a config consists of, beside variant and seed."""


def words(sweep: Sweep) -> str:
    """The options of a sweep's configs as words of a command line, without seeds, those at their default left out."""
    said = []
    for field in dataclasses.fields(sweep):
        value = getattr(sweep, field.name)
        if field.name not in (*CHOSEN, "data", "variants") or value == field.default:
            continue
        if isinstance(value, Path) and value.is_absolute():
            value = value.name  # a folder of this machine means nothing elsewhere
        values = value if isinstance(value, tuple) else (value,)
        said += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return shlex.join(said)


@dataclass(frozen=True)
class Tuned:
    """What best.yaml says.

    Attributes:
        variant: the variant that was searched.
        options: the options of CHOSEN.
        base_override: those of the overrides that every trial of the search had.
        config: the complete config, of one of its seeds.
        provenance: where it comes from and how well it did: study, trial, commit, confirmed scores.
    """

    variant: str
    options: dict[str, Any]
    base_override: tuple[str, ...]
    config: Config
    provenance: dict[str, Any]

    def matches(self, sweep: Sweep) -> bool:
        """Whether a sweep has these options, none of them changed on its command line."""
        return all(as_json(getattr(sweep, name)) == value for name, value in self.options.items())

    def default(self, sweep: Sweep) -> Sweep:
        """The same sweep without what the search chose."""
        return dataclasses.replace(
            sweep, config=None, cuts=DEFAULT_CUTS, weights=None, override=tuple(self.base_override)
        )

    def check(self, basis: Basis) -> None:
        """Raise ConfigError, with the field, where these options mean another config here than in the file."""
        from sgan.config import Weights

        weights = Weights(*self.options["weights"])
        variant = VARIANTS[self.variant].variant
        here = as_json(basis.config(variant, self.config.seed, weights, tuple(self.options["cuts"])))
        difference = _difference(as_json(self.config), here, "")
        require(
            not difference,
            f"the config file means another config here: {difference}; use the data and the commit "
            f"({self.provenance.get('commit')}) that it was found with, or give its options by hand",
        )

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        import yaml

        content = {
            "variant": self.variant,
            "options": self.options,
            "base_override": list(self.base_override),
            "provenance": self.provenance,
            "config": as_json(self.config),
        }
        text = (
            "# A config that a search has confirmed. The paper's six variants with it, on fresh seeds:\n"
            f"#   python sweeps/ablation.py --config {path.name}\n"
        )
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text + yaml.safe_dump(content, sort_keys=False, width=120))
        temporary.replace(path)


def _difference(there: Any, here: Any, path: str) -> str:
    """The first field in which two JSON values differ, in words; "" where none does."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = (_difference(there.get(name), here.get(name), f"{path}.{name}".strip(".")) for name in there)
        return next(filter(None, found), "")
    return "" if there == here else f"{path} is {there} in the file and {here} here"


def read(path: Path) -> Tuned:
    """Read a file that `Tuned.write` wrote; ConfigError, with the field, where it is none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        json.dumps(content, allow_nan=False)  # what YAML has beyond JSON, such as dates, is none of ours
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"the config file {path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    fields = {"variant", "options", "base_override", "provenance", "config"}
    require(
        isinstance(content, dict) and set(content) == fields,
        f"{path} is no config file of a search; it must have {', '.join(sorted(fields))}",
    )
    options, provenance, override = content["options"], content["provenance"], content["base_override"]
    require(
        isinstance(options, dict) and set(options) == set(CHOSEN),
        f"options in {path} must have {', '.join(CHOSEN)}",
    )
    require(
        isinstance(provenance, dict) and isinstance(provenance.get("study"), str),
        f"provenance in {path} must name the study, but got {provenance!r}",
    )
    require(
        isinstance(content["variant"], str) and content["variant"] in VARIANTS,
        f"variant in {path} must be one of {', '.join(VARIANTS)}, but got {content['variant']!r}",
    )
    given = options["override"]
    require(
        isinstance(override, list) and isinstance(given, list) and override == given[: len(override)],
        f"base_override in {path} must be the first of the overrides among the options, {given!r}, but got "
        f"{override!r}",
    )
    config = from_json(Config, content["config"], "config")
    return Tuned(content["variant"], options, tuple(override), config, provenance)


def defaults(path: Path) -> dict[str, Any]:
    """The options of a config file as fields of a Sweep; ConfigError where one has not its field's type."""
    found = {}
    for name, value in read(path).options.items():
        hint = {"cuts": tuple[str, ...], "override": tuple[str, ...], "weights": tuple[float, float, float]}.get(name)
        if hint is None and value is not None:
            hint = {"budget": float, "width": float, "image_size": int, "channels": int}.get(name, str)
        found[name] = from_json(hint, value, f"options.{name} in {path}") if hint else None
    return found


def without_password(text: str) -> str:
    """An address, or a text with one in it, without a password."""
    return re.sub(r"//([^/@:\s]*):[^/@\s]*@", r"//\1@", text)


def options_of(options: Options, basis: Basis, **chosen: Any) -> dict[str, Any]:
    """The options of CHOSEN, as JSON values, with everything chosen that was left to the hardware."""
    found = {name: getattr(options, name, None) for name in CHOSEN} | {
        "dataset": basis.row.name,
        "recipe": basis.recipe.name,
        "scorer": "inception" if basis.inception else "classifier",
    }
    return as_json(found | chosen)
