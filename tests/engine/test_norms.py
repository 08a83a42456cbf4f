"""Running statistics: frozen ones stay, and all processes evaluate and save the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.engine.hooks import frozen_norms
from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

ROOT = Path(__file__).parents[2]
ConfigBuilder = Callable[..., CfgNode]
SMALL_TIMM = {"stem_type": "deep", "stem_width": 8, "channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
TIMM = (
    *("MODEL.BACKBONE.NAME", "TimmBackbone", "MODEL.PIXEL_DECODER.IN_FEATURES", ["s8", "s16", "s32"]),
    *("MODEL.TIMM.OPTIONS", CfgNode(SMALL_TIMM)),
)


def moved(cfg: CfgNode) -> set[str]:
    """Names of what a training changes of the backbone."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    before = {name: tensor.clone() for name, tensor in trainer.model.backbone.state_dict().items()}
    trainer.train()
    return {
        name for name, tensor in trainer.model.backbone.state_dict().items() if not torch.equal(tensor, before[name])
    }


def test_a_frozen_backbone_stays_with_its_statistics(train_cfg: ConfigBuilder) -> None:
    evaluated = ("DATASETS.TEST", ("squares",), "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 2)  # puts the modes back
    assert not moved(train_cfg(*TIMM, *evaluated, "SOLVER.FREEZE", [r"^backbone\."]))


def test_only_frozen_stages_stay(train_cfg: ConfigBuilder) -> None:
    changed = moved(
        train_cfg(*TIMM, "SOLVER.MAX_ITER", 2, "SOLVER.FREEZE", [r"^backbone\.model\.(conv1|bn1|layer1)\."])
    )
    assert not any(name.startswith(("model.conv1.", "model.bn1.", "model.layer1.")) for name in changed)
    assert {"model.layer2.0.bn1.running_mean", "model.layer2.0.bn1.num_batches_tracked"} <= changed


def test_norms_count_as_frozen_with_what_they_belong_to() -> None:
    own, plain, trained = nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2)
    frozen = nn.Sequential(nn.Conv2d(2, 2, 1), plain)
    for module in (own, frozen):
        module.requires_grad_(False)
    lonely = nn.BatchNorm2d(2, affine=False)  # nothing says that it is frozen
    model = nn.Sequential(nn.Sequential(own, nn.Conv2d(2, 2, 1)), frozen, trained, lonely)
    assert set(frozen_norms(model)) == {own, plain}


SCRIPT = """
import sys
import grounding_dino
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import load_cfg

import torch
from detectron2.engine import HookBase, launch
from detectron2.utils import comm

STATISTIC = "backbone.model.bn1.running_mean"


class Note(HookBase):
    '''Writes what each process has: at the end of every step before other hooks, and at evaluations.'''

    def __init__(self):
        self.notes = {}

    def after_step(self):
        self.note(f"step {self.trainer.iter}")

    def note(self, when):
        self.notes[when] = self.trainer.checkpointer.model.state_dict()[STATISTIC].clone()
        torch.save(self.notes, f"{self.trainer.cfg.OUTPUT_DIR}/notes{comm.get_rank()}.pth")


def train(file, resume):
    torch.set_num_threads(1)
    note = Note()
    Trainer.test = classmethod(lambda cls, cfg, model: note.note(f"evaluation {note.trainer.iter}"))
    note.trainer = trainer = Trainer(load_cfg(file))
    trainer.resume_or_load(resume)
    trainer._hooks.insert(0, note)
    trainer.train()


if __name__ == "__main__":
    launch(train, 2, dist_url="auto", args=(sys.argv[1], sys.argv[2] == "resume"))
"""


@pytest.mark.slow
def test_two_processes_evaluate_and_save_the_same_statistics(train_cfg: ConfigBuilder, tmp_path: Path) -> None:
    # 64 channels: GroupNorm has to find two values a group in the one picture that each process trains on
    periods = ("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 2)
    cfg = train_cfg(*TIMM, *periods, "MODEL.EMBED_DIM", 64)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "two.yaml").write_text(cfg.dump())

    def run(how: str) -> tuple[list[dict[str, torch.Tensor]], dict[str, dict[str, torch.Tensor]]]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        arguments = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "two.yaml"), how]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        notes = [torch.load(folder / f"notes{rank}.pth", weights_only=True) for rank in (0, 1)]
        files = ("model_0000002", "model_final")
        return notes, {file: torch.load(folder / f"{file}.pth", weights_only=True)["model"] for file in files}

    (first, second), saved = run("start")
    assert not torch.equal(first["step 0"], second["step 0"]), "each process sees pictures of its own"
    for evaluation, step in ((1, 1), (3, 3), (5, 4)):  # the last one comes after all iterations
        assert torch.equal(first[f"evaluation {evaluation}"], second[f"evaluation {evaluation}"])
        assert torch.equal(first[f"evaluation {evaluation}"], first[f"step {step}"])
    assert torch.equal(saved["model_0000002"]["backbone.model.bn1.running_mean"], first["step 2"])
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    notes, resumed = run("resume")
    assert torch.equal(notes[1]["step 3"], second["step 3"]), "the second process goes on as it did"
    assert all(torch.equal(tensor, resumed["model_final"][name]) for name, tensor in saved["model_final"].items())
