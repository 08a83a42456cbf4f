"""The default workflow: trainer, predictor, set-up, command line."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import numpy as np
import pytest
import torch
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    default_argument_parser,
    default_setup,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn


class ToyDetector(nn.Module):
    """Says that the whole picture is one object; learns a number from the mean of the pictures."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.5)
        self.to(cfg.MODEL.DEVICE)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        if self.training:
            brightness = torch.stack([x["image"].float().mean() / 255 for x in batched_inputs])
            return {"loss_toy": ((self.dropout(brightness + self.scale) - 2) ** 2).mean()}
        results = []
        for record in batched_inputs:
            size = (record["height"], record["width"])
            instances = Instances(size, pred_boxes=Boxes(torch.tensor([[0.0, 0.0, size[1], size[0]]])))
            instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
            results.append({"instances": instances, "scale": self.scale.item()})
        return results


class CountingEvaluator(DatasetEvaluator):
    def reset(self) -> None:
        self.count = 0

    def process(self, inputs: Any, outputs: Any) -> None:
        self.count += len(outputs)

    def evaluate(self) -> dict[str, Any]:
        return {"bbox": {"AP": float(self.count)}}


class ToyTrainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator:
        return CountingEvaluator()


@pytest.fixture
def toy_cfg(registered: str, small_cfg: Any, tmp_path: Path) -> Any:
    if "ToyDetector" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(ToyDetector)
    small_cfg.MODEL.META_ARCHITECTURE = "ToyDetector"
    small_cfg.MODEL.WEIGHTS = ""
    small_cfg.OUTPUT_DIR = str(tmp_path / "output")
    small_cfg.SOLVER.MAX_ITER = 6
    small_cfg.SOLVER.STEPS = (4,)
    small_cfg.SOLVER.WARMUP_ITERS = 2
    small_cfg.SOLVER.CHECKPOINT_PERIOD = 3
    small_cfg.TEST.EVAL_PERIOD = 4
    return small_cfg


@pytest.mark.parametrize("amp", [False, True])
def test_default_trainer_trains_evaluates_and_writes(toy_cfg: Any, amp: bool) -> None:
    toy_cfg.SOLVER.AMP.ENABLED = amp
    trainer = ToyTrainer(toy_cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert results == {"bbox": {"AP": 4.0}}
    assert trainer.model.scale.item() > 0
    output = Path(toy_cfg.OUTPUT_DIR)
    names = sorted(path.name for path in output.glob("*.pth"))
    assert names == ["model_0000002.pth", "model_0000005.pth", "model_final.pth"]
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert any(line.get("bbox/AP") == 4.0 for line in lines)
    assert any("total_loss" in line and "lr" in line for line in lines)


def test_default_trainer_goes_on_where_it_stopped(toy_cfg: Any) -> None:
    whole = ToyTrainer(toy_cfg)
    whole.train()
    checkpoint = Path(toy_cfg.OUTPUT_DIR, "last_checkpoint")
    checkpoint.write_text("model_0000002.pth")
    resumed = ToyTrainer(toy_cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    rates = [whole.storage.history("lr").values()[3:], None]
    resumed.train()
    rates[1] = resumed.storage.history("lr").values()
    assert rates[0] == rates[1]
    assert resumed.iter == 6
    finished = ToyTrainer(toy_cfg)
    finished.resume_or_load(resume=True)
    assert finished.start_iter == 6
    assert finished.train() == {"bbox": {"AP": 4.0}}  # nothing left to train


def test_weights_are_loaded_when_not_resuming(toy_cfg: Any, tmp_path: Path) -> None:
    torch.save({"model": {"scale": torch.tensor([7.0])}}, tmp_path / "weights.pth")
    toy_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    trainer = ToyTrainer(toy_cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0 and trainer.model.scale.item() == 7.0


def test_test_on_several_data_sets(toy_cfg: Any) -> None:
    model = ToyTrainer.build_model(toy_cfg)
    toy_cfg.DATASETS.TEST = (toy_cfg.DATASETS.TEST[0],) * 1
    assert ToyTrainer.test(toy_cfg, model) == {"bbox": {"AP": 4.0}}
    assert ToyTrainer.test(toy_cfg, model, [CountingEvaluator()]) == {"bbox": {"AP": 4.0}}
    assert DefaultTrainer.test(toy_cfg, model) == {}  # no evaluator: a warning
    with pytest.raises((ValueError, AssertionError)):
        ToyTrainer.test(toy_cfg, model, [CountingEvaluator(), CountingEvaluator()])


def test_scaling_to_the_number_of_processes(toy_cfg: Any) -> None:
    toy_cfg.SOLVER.REFERENCE_WORLD_SIZE, toy_cfg.SOLVER.IMS_PER_BATCH = 8, 16
    toy_cfg.SOLVER.MAX_ITER, toy_cfg.SOLVER.STEPS, toy_cfg.SOLVER.BASE_LR = 1000, (600, 800), 0.08
    toy_cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(toy_cfg, 2)
    assert scaled.is_frozen() and scaled.SOLVER.IMS_PER_BATCH == 4 and scaled.SOLVER.MAX_ITER == 4000
    assert scaled.SOLVER.STEPS == (2400, 3200) and scaled.SOLVER.BASE_LR == pytest.approx(0.02)
    assert toy_cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(toy_cfg, 8) is toy_cfg


def test_predictor(toy_cfg: Any, tmp_path: Path) -> None:
    torch.save({"model": {"scale": torch.tensor([7.0])}}, tmp_path / "weights.pth")
    toy_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    predictor = DefaultPredictor(toy_cfg)
    output = predictor(np.zeros((50, 80, 3), dtype=np.uint8))
    assert output["scale"] == 7.0 and output["instances"].image_size == (50, 80)
    assert predictor.metadata.name == toy_cfg.DATASETS.TEST[0] and not predictor.model.training


def test_setup_writes_the_config_and_seeds(toy_cfg: Any) -> None:
    toy_cfg.SEED = 5
    level, handlers = logging.getLogger("detectron2").level, list(logging.getLogger("detectron2").handlers)
    draws = []
    for _ in range(2):
        default_setup(toy_cfg, argparse.Namespace(config_file="", eval_only=False))
        draws.append((np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    assert "META_ARCHITECTURE: ToyDetector" in Path(toy_cfg.OUTPUT_DIR, "config.yaml").read_text()
    assert "META_ARCHITECTURE" in Path(toy_cfg.OUTPUT_DIR, "log.txt").read_text()
    logger = logging.getLogger("detectron2")
    logger.setLevel(level)
    logger.handlers[:], logger.propagate = handlers, True


def test_command_line() -> None:
    args = default_argument_parser().parse_args(["--config-file", "x.yaml", "--num-gpus", "2", "SEED", "3"])
    assert args.config_file == "x.yaml" and args.num_gpus == 2 and args.opts == ["SEED", "3"]
    assert not args.resume and not args.eval_only and args.dist_url.startswith("tcp://127.0.0.1:")
