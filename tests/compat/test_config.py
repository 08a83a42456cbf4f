"""The configuration tree and `configurable`, as their users rely on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import yaml
from detectron2.config import CfgNode, configurable, get_cfg


def test_each_config_is_a_copy() -> None:
    first = get_cfg()
    first.MODEL.PIXEL_MEAN[0] = 0.0
    first.SOLVER.BASE_LR = 7.0
    assert get_cfg().MODEL.PIXEL_MEAN[0] == 103.53
    assert get_cfg().SOLVER.BASE_LR == 0.001


def test_file_inherits_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "Base.yaml").write_text("SOLVER:\n  BASE_LR: 0.5\n  MAX_ITER: 7\n")
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text('_BASE_: "base/Base.yaml"\nSOLVER:\n  MAX_ITER: 9\nDATASETS:\n  TRAIN: ("a", "b")\n')
    cfg = get_cfg()
    cfg.merge_from_file(str(leaf))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.5, 9)
    assert cfg.DATASETS.TRAIN == ("a", "b")


def test_several_bases_apply_in_order(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("SEED: 1\nVIS_PERIOD: 5\n")
    (tmp_path / "two.yaml").write_text("SEED: 2\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: [one.yaml, two.yaml]\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "leaf.yaml"))
    assert (cfg.SEED, cfg.VIS_PERIOD) == (2, 5)


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("SOLVER:\n  BASE_LRR: 0.5\n")
    with pytest.raises(KeyError, match="BASE_LRR"):
        get_cfg().merge_from_file(str(file))


def test_list_of_options_takes_literals() -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", "(10, 20)", "MODEL.WEIGHTS", "model.pth", "SEED", "3"])
    assert (cfg.SOLVER.STEPS, cfg.MODEL.WEIGHTS, cfg.SEED) == ((10, 20), "model.pth", 3)


def test_value_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="BASE_LR"):
        get_cfg().merge_from_list(["SOLVER.BASE_LR", "'fast'"])


def test_dump_loads_again(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("somewhere",)
    file = tmp_path / "dumped.yaml"
    file.write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(file))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_frozen_config_does_not_change() -> None:
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    assert cfg.clone().is_frozen()


class Part:
    """A class in the manner of all parts of a model."""

    @configurable
    def __init__(self, width: int, *, depth: int = 2, name: str = "part") -> None:
        self.values = (width, depth, name)

    @classmethod
    def from_config(cls, cfg: CfgNode, width: int) -> dict[str, Any]:
        return {"width": width, "depth": cfg.SOLVER.MAX_ITER}


class SubPart(Part):
    """Inherits both constructor and from_config."""


@pytest.mark.parametrize("part", [Part, SubPart])
def test_configurable_constructor(part: type[Part]) -> None:
    cfg = get_cfg()
    assert part(3, name="x").values == (3, 2, "x")
    assert part(cfg, 4).values == (4, 40000, "part")  # type: ignore[call-arg, arg-type]
    assert part(cfg=cfg, width=4).values == (4, 40000, "part")  # type: ignore[call-arg]
    assert part(cfg, 4, depth=1).values == (4, 1, "part")  # type: ignore[call-arg, arg-type]


def test_configurable_function() -> None:
    @configurable(from_config=lambda cfg, scale=1: {"value": cfg.SOLVER.MAX_ITER * scale})
    def build(value: int, extra: int = 0) -> tuple[int, int]:
        return value, extra

    assert build(3) == (3, 0)
    assert build(get_cfg(), scale=2, extra=5) == (80000, 5)


def test_configurable_without_from_config_is_refused() -> None:
    class Bare:
        @configurable
        def __init__(self, width: int) -> None:
            self.width = width

    with pytest.raises(AttributeError, match="from_config"):
        Bare(get_cfg())
