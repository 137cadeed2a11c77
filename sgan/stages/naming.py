"""Names of stages: equal work has one name in every trial and every sweep, and is done once.

A name is the hash of a stage's fields, in which its parents stand by their names, and of the code that its result
depends on: the files in COUNTED that the file of its kind imports, directly or through others. Comments, docstrings and
layout do not count, nor does code that only makes values: these are in the fields.
"""

import ast
import dataclasses
import functools
from pathlib import Path
from typing import Any

from sgan.checks import content_key

KINDS = {kind: kind for kind in ("judge", "level", "joint", "score")} | {"encoder": "classifier"}
"""Kind of a stage -> its file in sgan/stages/kinds."""
COUNTED = ("sgan.data.batches", "sgan.models.", "sgan.training.", "sgan.evaluation.", "sgan.stages.kinds.")
"""Modules, and packages with a dot at the end, whose code is part of names."""
PACKAGE = Path(__file__).parents[1]


@functools.cache
def name(stage: Any) -> str:
    """The name in the store of a stage of sgan.stages.graph: its kind and content key."""
    fields = {field.name: _by_name(getattr(stage, field.name)) for field in dataclasses.fields(stage)}
    return f"{stage.kind}-{content_key([stage.kind, fields, code_digest(stage.kind)])}"


def _by_name(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_by_name(item) for item in value]
    return name(value) if hasattr(value, "parents") else value


def code_version() -> str:
    """Hash of the code that the results of stages of any kind depend on."""
    return content_key({kind: code_digest(kind) for kind in KINDS})


@functools.cache
def code_digest(kind: str, package: Path = PACKAGE) -> str:
    """Hash of the code that the results of stages of this kind depend on. `package`: folder of the package sgan."""
    code = import_closure(f"sgan.stages.kinds.{KINDS[kind]}", package)
    return content_key({module: code[module] for module in code if module.startswith(COUNTED)})


def import_closure(module: str, package: Path = PACKAGE) -> dict[str, str]:
    """The module and all modules of sgan that it imports, directly or through others, anywhere in their code: dotted
    name -> code without comments, docstrings and layout. A package's __init__ counts only where it is named."""
    code: dict[str, str] = {}
    queue = [module]
    while queue:
        module = queue.pop()
        path = package.joinpath(*module.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module not in code and path.is_file():
            code[module], imported = _parse(path.read_text())
            queue += imported
    return code


@functools.cache
def _parse(source: str) -> tuple[str, tuple[str, ...]]:
    """A module's code without comments, docstrings and layout, and the dotted names in sgan that it may import."""
    tree, imported = ast.parse(source), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            texts = [item for item in node.body if isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)]
            node.body = [item for item in node.body if item not in texts] or [ast.Pass()]
    return ast.unparse(tree), tuple(each for each in imported if each.split(".")[0] == "sgan")
