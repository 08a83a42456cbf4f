"""Starting one process or several."""

import json
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  makes detectron2 importable

import pytest
import torch
from detectron2.engine import (
    launch,
)


@pytest.mark.parametrize("num_gpus", [0, 1])
def test_launch_in_this_process(num_gpus: int) -> None:
    seen: list[Any] = []
    launch(lambda *args: seen.append(args), num_gpus, args=(1, 2))
    assert seen == [(1, 2)]


def test_launch_on_several_machines_needs_an_address() -> None:
    with pytest.raises((ValueError, AssertionError)):
        launch(print, 1, num_machines=2, dist_url="auto")


WORKER = """
import grounding_dino
import json, torch
from pathlib import Path
from torch import nn
from detectron2.data import build_detection_test_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import SimpleTrainer, create_ddp_model
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
import itertools


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": ((self.weight - x) ** 2).sum()} if self.training else x


class Gather(DatasetEvaluator):
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen.extend(inputs)

    def evaluate(self):
        parts = comm.gather(self.seen)
        return {"all": list(itertools.chain(*parts))} if comm.is_main_process() else None


def main(folder):
    rank = comm.get_rank()
    model = create_ddp_model(Model())
    data = itertools.repeat(torch.tensor([1.0 + 2 * rank]))  # 1 and 3: together they pull to 2
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.25))
    trainer.train(0, 20)
    indices = list(itertools.islice(TrainingSampler(10, seed=1), 5))
    results = inference_on_dataset(nn.Identity(), build_detection_test_loader(list(range(5)), mapper=None), Gather())
    report = {
        "weight": model.module.weight.item(),
        "world": comm.get_world_size(),
        "local": comm.get_local_rank(),
        "loss": trainer.storage.latest().get("total_loss", [None])[0],
        "indices": indices,
        "results": results,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(report))
"""


@pytest.mark.slow
def test_launch_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compat_launch_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import compat_launch_worker  # type: ignore[import-not-found]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch(compat_launch_worker.main, 2, dist_url="auto", args=(str(tmp_path),))
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [report["world"] for report in reports] == [2, 2] and [report["local"] for report in reports] == [0, 1]
    assert reports[0]["weight"] == reports[1]["weight"] == pytest.approx(2, abs=1e-4)
    assert reports[0]["loss"] == pytest.approx(1, abs=1e-3) and reports[1]["loss"] is None
    assert sorted(reports[0]["indices"] + reports[1]["indices"]) == list(range(10))
    assert reports[0]["results"] == {"all": [0, 1, 2, 3, 4]} and reports[1]["results"] == {}
