"""No key of this project's configuration is dead."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import grounding_dino
from grounding_dino.config import add_grounding_dino_config

import pytest
from detectron2.config import CfgNode, get_cfg

PACKAGE = Path(grounding_dino.__file__).parent
INFORMATIVE = ("MODEL.RELEASE.",)  # for readers of a configuration


def keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode) and value:
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def own_keys() -> list[str]:
    cfg, theirs = get_cfg(), set(keys(get_cfg()))
    add_grounding_dino_config(cfg)
    return [key for key in keys(cfg) if key not in theirs and not key.startswith(INFORMATIVE)]


def names_read(path: Path) -> set[str]:
    """Names that a module reads as attributes, or writes as strings (as in `cfg.TEST[key]`)."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


@pytest.fixture(scope="module")
def modules() -> list[set[str]]:
    """The names that each module of the package reads, but for the one that defines the keys."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "config.py"]
    return [names_read(path) for path in paths if "compat" not in path.relative_to(PACKAGE).parts]


def test_every_key_is_read_with_its_section(modules: list[set[str]]) -> None:
    """Some module names both the key and the section that it is in."""
    found = own_keys()
    assert len(found) > 130
    dead = [key for key in found if not any(set(key.split(".")[-2:]) <= names for names in modules)]
    assert not dead


def test_a_key_that_nothing_reads_would_be_found(modules: list[set[str]]) -> None:
    assert not any({"SOLVER", "NOTHING_READS_THIS"} <= names for names in modules)
    assert not any({"RELEASE", "METRIC"} <= names for names in modules)
