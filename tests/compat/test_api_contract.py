"""What makes the compact Detectron2 a drop-in: names, parameters, defaults and bases as read off upstream.

Runs on whichever Detectron2 is installed. Annotations are not compared.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import detectron2
import pytest
import yaml
from detectron2.config import get_cfg

REFERENCE = Path(__file__).parents[1] / "reference"
API: dict[str, dict[str, dict[str, Any]]] = json.loads((REFERENCE / "detectron2_api.json").read_text())
IS_COMPAT = detectron2.__version__.endswith("+compat")

# Names of upstream that the compact one does not provide yet. A name that it does provide must not stand here.
NOT_YET = {
    # rotated boxes and keypoints, which the compact one leaves out for good
    "detectron2.data.transforms.HFlipTransform.apply_rotated_box",
    "detectron2.data.transforms.NoOpTransform.apply_rotated_box",
    "detectron2.utils.visualizer.Visualizer.draw_and_connect_keypoints",
    "detectron2.utils.visualizer.Visualizer.draw_rotated_box_with_label",
    "detectron2.utils.visualizer.Visualizer.overlay_rotated_instances",
    # panoptic, semantic and LVIS evaluation
    "detectron2.evaluation.COCOPanopticEvaluator",
    "detectron2.evaluation.CityscapesInstanceEvaluator",
    "detectron2.evaluation.CityscapesSemSegEvaluator",
    "detectron2.evaluation.LVISEvaluator",
    "detectron2.evaluation.SemSegEvaluator",
    # mask training and GLIP's neck
    "detectron2.modeling.DatasetMapperTTA",
    "detectron2.modeling.FPN",
    "detectron2.projects.deeplab.add_deeplab_config",
    "detectron2.projects.point_rend.ColorAugSSDTransform",
    "detectron2.projects.point_rend.point_features.get_uncertain_point_coords_with_randomness",
    "detectron2.projects.point_rend.point_features.point_sample",
}


def names() -> Iterator[tuple[str, str]]:
    for module, entries in API.items():
        for name in entries:
            yield module, name


def lookup(module: str, name: str) -> Any:
    """The object `name` of `module`; AttributeError where either is missing."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("detectron2"):
            raise
        raise AttributeError(str(error)) from error


def missing_names() -> set[str]:
    """Names, and members of classes, of the reference that the Detectron2 in use lacks."""
    missing = set()
    for module, name in names():
        try:
            found = lookup(module, name)
        except AttributeError:
            missing.add(f"{module}.{name}")
            continue
        members = API[module][name].get("members", {})
        missing |= {f"{module}.{name}.{member}" for member in members if not hasattr(found, member)}
    return missing


def parameters_of_reference(signature: str) -> list[tuple[str, str, str | None]]:
    """(kind, name, default) of each parameter in the text of a signature."""
    source = re.sub(r"<(\w+\.\w+): \d+>", r"'\1'", signature)  # enum members, which have no literal
    source = re.sub(r"<function (\w+) at \w+>", r"'\1'", source)
    function = ast.parse(f"def f{source}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [
        ("positional", argument.arg, default and ast.unparse(default))
        for argument, default in zip(positional, defaults)
    ]
    if arguments.vararg:
        found.append(("*", arguments.vararg.arg, None))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        found.append(("keyword", argument.arg, default and ast.unparse(default)))
    if arguments.kwarg:
        found.append(("**", arguments.kwarg.arg, None))
    return found


def literal(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return repr(f"{type(value).__name__}.{value.name}")
    return ast.unparse(ast.parse(repr(value), mode="eval"))


def parameters_of(function: Any) -> list[tuple[str, str, str | None]]:
    """(kind, name, default) of each parameter of a live function or class."""
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: "positional",
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional",
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return [
        (
            kinds[parameter.kind],
            parameter.name,
            None if parameter.default is parameter.empty else literal(parameter.default),
        )
        for parameter in inspect.signature(function).parameters.values()
    ]


def bases_of(cls: type) -> list[str]:
    """Names of the bases; a base that only splits a class over files counts as its own bases."""
    public = {name for entries in API.values() for name in entries}
    found = []
    for base in cls.__bases__:
        is_internal = base.__module__.startswith("detectron2.") and base.__name__ not in public
        found.extend(bases_of(base) if is_internal else [base.__name__])
    return [name for name in found if name != "object"]


def check_member(cls: type, name: str, expected: str) -> None:
    """Hold member `name` of `cls` against its description."""
    raw = inspect.getattr_static(cls, name)
    if expected == "property":
        assert isinstance(raw, property)
    elif expected.startswith("= "):
        assert repr(getattr(cls, name)) == expected[2:]
    elif expected.startswith(("classmethod(", "staticmethod(")):
        kind, _, signature = expected.partition("(")
        assert type(raw).__name__ == kind
        assert parameters_of(raw.__func__) == parameters_of_reference("(" + signature)
    elif expected.startswith("("):
        assert parameters_of(raw) == parameters_of_reference(expected)
    else:
        assert type(getattr(cls, name)).__name__ == expected


def test_list_of_missing_names_is_true() -> None:
    """Upstream has every name; the compact one all but those of the list, and the list holds nothing it has."""
    assert missing_names() == (NOT_YET if IS_COMPAT else set())


@pytest.mark.parametrize(
    ("module", "name"), [pair for pair in names() if not (IS_COMPAT and ".".join(pair) in NOT_YET)]
)
def test_name_is_as_upstream(module: str, name: str) -> None:
    expected = API[module][name]
    found = lookup(module, name)
    if expected["kind"] == "function":
        assert callable(found)
        assert parameters_of(found) == parameters_of_reference(expected["signature"])
    elif expected["kind"] == "class":
        assert isinstance(found, type)
        assert bases_of(found) == expected["bases"]
        # The constructor of enums is Python's and differs between its versions.
        if expected["init"] is not None and not issubclass(found, enum.Enum):
            assert parameters_of(found) == parameters_of_reference(expected["init"])
        for member, description in expected["members"].items():
            if IS_COMPAT and f"{module}.{name}.{member}" in NOT_YET:
                continue
            check_member(found, member, description)
    else:
        assert type(found).__name__ == expected["kind"]


def test_config_defaults_are_as_upstream() -> None:
    expected = yaml.safe_load((REFERENCE / "detectron2_config_defaults.yaml").read_text())
    assert yaml.safe_load(get_cfg().dump()) == expected


@pytest.mark.parametrize(
    "key",
    [
        "DATASETS.TRAIN",
        "DATASETS.TEST",
        "INPUT.MIN_SIZE_TRAIN",
        "SOLVER.STEPS",
        "TEST.AUG.MIN_SIZES",
        "MODEL.RPN.BBOX_REG_WEIGHTS",
    ],
)
def test_config_tuples_are_tuples(key: str) -> None:
    value = get_cfg()
    for part in key.split("."):
        value = value[part]
    assert type(value) is tuple


def test_every_default_is_a_plain_value() -> None:
    """So that a dumped config loads without constructing Python objects."""

    def check(node: Any) -> None:
        for value in node.values():
            if isinstance(value, dict):
                check(value)
            else:
                assert isinstance(value, (tuple, list, str, int, float, bool, type(None)))

    check(get_cfg())
