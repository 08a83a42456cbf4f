"""Weights of backbone and text encoder alone are read when a training starts, and at no other time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.cli.train import build_parser, evaluate
from grounding_dino.engine.initial_weights import load_initial_weights
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import build_model
from grounding_dino.predictor import load_predictor

import pytest
import timm
import torch
from detectron2.config import CfgNode

ConfigBuilder = Callable[..., CfgNode]
SMALL_TIMM = {"stem_type": "deep", "stem_width": 8, "channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
TIMM = (
    *("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.PIXEL_DECODER.IN_FEATURES", ["s8", "s16", "s32"]),
    *("MODEL.TIMM.OPTIONS", CfgNode(SMALL_TIMM)),
)


def with_published_file(cfg: CfgNode, file: Path) -> CfgNode:
    """What timm publishes for the backbone lies in `file`, which may be missing, as without a network."""
    cfg.MODEL.TIMM.PRETRAINED_ON = True
    cfg.MODEL.TIMM.OPTIONS.pretrained_cfg_overlay = CfgNode({"file": str(file)})
    return cfg


def gone(folder: Path) -> tuple[str, ...]:
    return (
        *("MODEL.TEXT_ENCODER.WEIGHTS", str(folder / "gone" / "bert")),
        *("MODEL.BACKBONE.WEIGHTS", str(folder / "gone.pth")),
    )


def assert_equal(left: torch.nn.Module, right: torch.nn.Module) -> None:
    theirs = right.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in left.state_dict().items())


def started(cfg: CfgNode, resume: bool = False) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def trained(cfg: CfgNode) -> Trainer:
    trainer = started(cfg)
    trainer.train()
    return trainer


@pytest.mark.parametrize("file", ["MODEL.TEXT_ENCODER.WEIGHTS", "MODEL.BACKBONE.WEIGHTS", "MODEL.TIMM.PRETRAINED_ON"])
def test_whoever_has_a_whole_checkpoint_needs_no_other_file(
    train_cfg: ConfigBuilder, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opts: tuple[Any, ...] = (*TIMM, "SOLVER.MAX_ITER", 1)
    first = trained(train_cfg(*opts)).model.eval()
    weights = f"{tmp_path}/run/model_final.pth"

    def later(*more: Any) -> CfgNode:
        cfg = train_cfg(*opts, "DATASETS.TEST", ("squares",), *more)
        if file.endswith("PRETRAINED_ON"):
            return with_published_file(cfg, tmp_path / "gone.pth")
        cfg.merge_from_list([file, str(tmp_path / "gone.pth")])
        return cfg

    with pytest.raises((CheckpointError, FileNotFoundError, RuntimeError), match="gone.pth|timm cannot fetch"):
        started(later("OUTPUT_DIR", str(tmp_path / "new")))  # here they are needed
    assert_equal(build_model(later(), weights), first)
    assert_equal(load_predictor(later(), weights, "cpu").model, first)
    resumed = started(later(), resume=True)
    assert resumed.start_iter == 1
    assert_equal(resumed.model, first)
    assert_equal(started(later("MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "tuned"))).model, first)
    evaluated = []
    monkeypatch.setattr(Trainer, "test", lambda cfg, model: evaluated.append(model) or {})
    for flags, more in (([], ("MODEL.WEIGHTS", weights)), (["--resume"], ())):
        cfg = later(*more)
        evaluate(cfg, build_parser().parse_args(["--config-file", "swin_t_ogc", "--eval-only", *flags]))
        assert_equal(evaluated.pop(), first)


def test_timms_weights_start_a_training(train_cfg: ConfigBuilder, tmp_path: Path) -> None:
    torch.manual_seed(5)
    published = timm.create_model("resnet18", **SMALL_TIMM)
    torch.save(published.state_dict(), tmp_path / "timm.pth")
    model = started(with_published_file(train_cfg(*TIMM), tmp_path / "timm.pth")).model
    ours = model.backbone.model.state_dict()
    theirs = published.state_dict()
    assert ours and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    with pytest.raises(
        RuntimeError, match=r"TIMM.PRETRAINED_ON is True, but timm cannot fetch weights of 'resnet18' \(File"
    ):
        started(with_published_file(train_cfg(*TIMM), tmp_path / "gone.pth"))


def test_a_backbones_file_is_preferred_to_timms(train_cfg: ConfigBuilder, tmp_path: Path) -> None:
    source = Trainer(train_cfg(*TIMM, "SEED", 9)).model.backbone
    torch.save(source.state_dict(), tmp_path / "backbone.pth")
    cfg = train_cfg(*TIMM, "MODEL.BACKBONE.WEIGHTS", str(tmp_path / "backbone.pth"))
    assert_equal(started(with_published_file(cfg, tmp_path / "gone.pth")).model.backbone, source)


def test_parts_that_begin_with_random_weights_are_named(
    train_cfg: ConfigBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trainer = trained(train_cfg("SOLVER.MAX_ITER", 1))
    said = [record.getMessage() for record in caplog.records if "random weights" in record.getMessage()]
    assert said == [
        "the backbone begins with random weights: no file is named (MODEL.BACKBONE.WEIGHTS)",
        "the text encoder begins with random weights: no file is named (MODEL.TEXT_ENCODER.WEIGHTS)",
    ]
    caplog.clear()
    started(train_cfg("MODEL.WEIGHTS", f"{trainer.cfg.OUTPUT_DIR}/model_final.pth", output="whole"))
    assert "random weights" not in caplog.text


def test_building_alone_reads_nothing_and_other_backbones_have_no_timm(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    tiny_cfg.merge_from_list(list(gone(tmp_path)))
    model = build_model(tiny_cfg)  # MODEL.WEIGHTS is empty: random weights
    tiny_cfg.merge_from_list(["MODEL.TEXT_ENCODER.WEIGHTS", "", "MODEL.BACKBONE.WEIGHTS", ""])
    tiny_cfg.MODEL.TIMM.PRETRAINED_ON = True
    load_initial_weights(tiny_cfg, model)
