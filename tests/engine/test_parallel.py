"""Several processes: the same losses as one, replicated (DDP) or split (FSDP2); whole files; evaluation, resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.sharded import accept_whole_tensors, split_optimizer_state, whole
from grounding_dino.engine.parallel import distribute, gathered, split_parameters
from grounding_dino.engine.trainer import Trainer

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

ROOT = Path(__file__).parents[2]

# Trains each configuration in turn, in the two processes that torchrun has started, and records what came of it.
WORKER = """
import json, sys
from pathlib import Path
import grounding_dino
from grounding_dino.engine.launchers import run_worker, worker_of_environment
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import load_cfg
from detectron2.utils import comm
import torch

def main(file):
    torch.set_num_threads(1)
    report = {}
    for name, text in json.loads(Path(file).read_text()).items():
        cfg = load_cfg(text)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=name.startswith("resumed"))
        size = sum(own_size(parameter) for parameter in trainer.checkpointer.model.parameters())
        results = trainer.train()
        losses = [value for value, _ in trainer.storage.history("total_loss").values()] if comm.get_rank() == 0 else []
        report[name] = {"size": size, "losses": losses, "results": results}
    Path(file).with_suffix(f".{comm.get_rank()}").write_text(json.dumps(report))

def own_size(parameter):
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).numel()

run_worker(main, worker_of_environment(), "cpu", (sys.argv[1],))
"""


@pytest.fixture
def two_processes(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """`two_processes(name=cfg, ...)`: train each in two processes; what each process reports, by name."""

    def run(**cfgs: CfgNode) -> list[dict[str, Any]]:
        script, request = tmp_path / "worker.py", tmp_path / "request.json"
        script.write_text(WORKER)
        files = {}
        for name, cfg in cfgs.items():
            files[name] = str(tmp_path / f"{name}.yaml")
            Path(files[name]).write_text(cfg.dump())
        request.write_text(json.dumps(files))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(request)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return [json.loads(request.with_suffix(f".{rank}").read_text()) for rank in (0, 1)]

    return run


@pytest.fixture
def equal_cfg(train_cfg: Callable[..., CfgNode], coco_folder: Path) -> Callable[..., CfgNode]:
    """As `train_cfg`: pictures of one size, and nothing in a step that is drawn in each process apart."""
    file = coco_folder / "boxes.json"
    content = json.loads(file.read_text())
    content["images"] = [image for image in content["images"] if image["width"] == 64]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in kept]
    file.write_text(json.dumps(content))

    def build(*opts: Any, output: str) -> CfgNode:
        plain = [
            "MODEL.TEXT_ENCODER.DROPOUT",
            0.0,
            "MODEL.SWIN.DROP_PATH_RATE",
            0.0,
            "MODEL.DENOISING.ENABLED_ON",
            False,
        ]
        size = ["INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 10]
        # AdamW makes steps of equal length out of gradients that are nothing but rounding
        optimizer = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.01]
        return train_cfg(*plain, *size, *optimizer, *opts, output=output)

    return build


def losses_of_one_process(cfg: CfgNode) -> list[float]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return [value for value, _ in trainer.storage.history("total_loss").values()]


def content_of(cfg: CfgNode, name: str = "model_final") -> dict[str, Any]:
    return torch.load(Path(cfg.OUTPUT_DIR) / f"{name}.pth", weights_only=True)


def assert_equal_state(left: Any, right: Any, **tolerance: float) -> None:
    """Nested dictionaries and lists of tensors are equal, in form too."""
    if isinstance(left, dict):
        assert isinstance(right, dict)
        assert list(left) == list(right)
        for key in left:
            assert_equal_state(left[key], right[key], **tolerance)
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right):
            assert_equal_state(one, other, **tolerance)
    elif isinstance(left, torch.Tensor):
        torch.testing.assert_close(left, right, **(tolerance or {"rtol": 0.0, "atol": 0.0}))
    else:
        assert left == right and type(left) is type(right)


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_replicated_and_split(
    equal_cfg: Callable[..., CfgNode], two_processes: Callable[..., list[dict[str, Any]]]
) -> None:
    test = ("DATASETS.TEST", ("squares",), "TEST.EVAL_PERIOD", 5)
    split = ("SOLVER.DATA_PARALLEL", "fsdp2", "SOLVER.CHECKPOINT_PERIOD", 5, *test)
    cfgs = {"ddp": equal_cfg(*test, output="ddp"), "fsdp2": equal_cfg(*split, output="fsdp2")}
    alone = losses_of_one_process(equal_cfg(output="alone"))
    unlearned = losses_of_one_process(equal_cfg("SOLVER.BASE_LR", 0.0, output="unlearned"))
    assert max(abs(one - other) for one, other in zip(alone, unlearned)) > 0.05, "too little is learned to compare"
    first, second = two_processes(**cfgs)
    for way in ("ddp", "fsdp2"):
        assert first[way]["losses"] == pytest.approx(alone, abs=1e-4)
    assert first["fsdp2"]["results"]["bbox"] == pytest.approx(first["ddp"]["results"]["bbox"], abs=0.5, nan_ok=True)

    whole_size = first["ddp"]["size"]
    assert second["ddp"]["size"] == whole_size
    assert first["fsdp2"]["size"] + second["fsdp2"]["size"] == whole_size
    assert first["fsdp2"]["size"] < 0.6 * whole_size

    files = [content_of(cfgs[way]) for way in ("ddp", "fsdp2")]
    files[1].pop("periodic_checkpoints")
    assert_equal_state(files[0]["model"], files[1]["model"], rtol=0.0, atol=1e-5)
    optimizers = [content["trainer"]["_trainer"].pop("optimizer") for content in files]
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    assert shapes_of(optimizers[0]["state"]) == shapes_of(optimizers[1]["state"])
    assert files[0]["trainer"] == files[1]["trainer"] and files[0].keys() == files[1].keys()


def shapes_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shapes_of(item) for key, item in value.items()}
    return (value.shape, value.dtype) if isinstance(value, torch.Tensor) else value


@pytest.mark.slow
def test_glip_in_two_processes_all_of_it_and_its_prompt_vectors_alone(
    equal_cfg: Callable[..., CfgNode],
    two_processes: Callable[..., list[dict[str, Any]]],
    tiny_glip_cfg: CfgNode,
    tiny_glip: nn.Module,
    tmp_path: Path,
) -> None:
    torch.save({"model": tiny_glip.state_dict()}, tmp_path / "base.pth")
    tuning = ("SOLVER.FREEZE", [r"^(?!prompt_vectors\.)"], "MODEL.TEXT_ENCODER.FREEZE_ON", True)
    tuning = (*tuning, "INPUT.SHUFFLE_CATEGORIES_ON", False, "SOLVER.BASE_LR", 0.1)

    def cfg(output: str, *opts: Any) -> CfgNode:
        built = equal_cfg(output=output)
        built.MODEL = tiny_glip_cfg.MODEL.clone()
        start = ("MODEL.WEIGHTS", str(tmp_path / "base.pth"), "MODEL.DENSE_HEAD.PROMPT_VECTORS", 20)
        built.merge_from_list([*start, "SOLVER.MAX_ITER", 4, *opts])
        return built

    split = cfg("fsdp2", "SOLVER.DATA_PARALLEL", "fsdp2")
    cfgs = {"ddp": cfg("ddp"), "fsdp2": split, "tuned": cfg("tuned", *tuning)}
    whole = losses_of_one_process(cfg("alone"))
    alone = {"ddp": whole, "fsdp2": whole, "tuned": losses_of_one_process(cfg("tuned_alone", *tuning))}
    first, _ = two_processes(**cfgs)
    for way, losses in alone.items():
        assert first[way]["losses"] == pytest.approx(losses, abs=1e-3)
    state = dict(content_of(cfgs["tuned"])["model"])
    assert state.pop("prompt_vectors.weight").any()
    assert_equal_state(state, dict(tiny_glip.state_dict()))


def test_single_numbers_cannot_be_split(tiny_cfg: CfgNode) -> None:
    tiny_cfg.merge_from_list(["MODEL.CLASS_HEAD.SCALE", "learned", "SOLVER.DATA_PARALLEL", "fsdp2"])
    with pytest.raises(ValueError, match=r"log_scale.* of this model .* .ddp."):
        split_parameters(build_model(tiny_cfg), tiny_cfg)


@pytest.mark.slow
def test_a_split_run_that_is_resumed_equals_an_uninterrupted_one(
    train_cfg: Callable[..., CfgNode], two_processes: Callable[..., list[dict[str, Any]]]
) -> None:
    # a constant rate, so that the length of a run changes nothing in its beginning
    split = ("SOLVER.DATA_PARALLEL", "fsdp2", "SOLVER.IMS_PER_BATCH", 4, "SOLVER.WARMUP_ITERS", 0)
    whole = train_cfg(*split, output="whole")
    half = train_cfg(*split, output="half")
    rest = half.clone()
    half.SOLVER.MAX_ITER = 2
    begun = train_cfg("SOLVER.MAX_ITER", 1, output="begun")
    Trainer(begun).train()
    for cfg in (whole, half):  # the weights to start from are read into split parameters
        cfg.MODEL.WEIGHTS = f"{begun.OUTPUT_DIR}/model_final.pth"
    two_processes(whole=whole, half=half, resumed=rest)
    left, right = content_of(whole), content_of(rest)
    alone = Trainer(rest)
    alone.resume_or_load(resume=True)
    assert alone.start_iter == 4, "one process goes on from what several have written"
    assert_equal_state(dict(alone.model.state_dict()), dict(right["model"]))
    assert_equal_state(alone.state_dict()["_trainer"]["optimizer"], right["trainer"]["_trainer"]["optimizer"])
    assert_equal_state(left.pop("model"), right.pop("model"))
    assert_equal_state(left["trainer"], right["trainer"])
    assert left["trainer"]["iteration"] == 3


@pytest.mark.slow
def test_training_options_in_two_processes(
    equal_cfg: Callable[..., CfgNode], two_processes: Callable[..., list[dict[str, Any]]]
) -> None:
    passes = ("SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.EMA.ENABLED_ON", True)
    stop = ("DATASETS.TEST", ("squares",), "TEST.EVAL_PERIOD", 2, "SOLVER.BEST_CHECKPOINT_METRIC", "bbox/AP")
    stop = (*stop, "SOLVER.EARLY_STOP.PATIENCE", 1, "SOLVER.BASE_LR", 0.0)  # nothing is learned, so nothing grows
    cfgs = {
        "ddp": equal_cfg(*passes, output="ddp"),
        "fsdp2": equal_cfg(*passes, "SOLVER.DATA_PARALLEL", "fsdp2", output="fsdp2"),
        "stopped": equal_cfg(*stop, output="stopped"),
        "stopped_split": equal_cfg(*stop, "SOLVER.DATA_PARALLEL", "fsdp2", output="stopped_split"),
        "lora": equal_cfg("MODEL.LORA.ENABLED_ON", True, output="lora"),
    }
    alone = losses_of_one_process(equal_cfg(*passes[2:], output="alone"))
    adapted = losses_of_one_process(equal_cfg("MODEL.LORA.ENABLED_ON", True, output="adapted"))
    first, _ = two_processes(**cfgs)
    for way in ("ddp", "fsdp2"):
        assert first[way]["losses"] == pytest.approx(alone, abs=1e-4)
    assert first["lora"]["losses"] == pytest.approx(adapted, abs=1e-4)
    averages = [content_of(equal_cfg(output=way))["ema"] for way in ("alone", "ddp", "fsdp2")]
    for average in averages[1:]:
        assert_equal_state(average["parameters"], averages[0]["parameters"], rtol=0.0, atol=1e-5)
        assert_equal_state(
            dict(sorted(average["weights"].items())), dict(sorted(averages[0]["weights"].items())), atol=1e-5, rtol=0.0
        )
    for way in ("stopped", "stopped_split"):
        assert len(first[way]["losses"]) == 4, "two evaluations"
        assert content_of(cfgs[way])["iteration"] == 3
        assert content_of(cfgs[way], "model_best")["iteration"] == 1


def test_one_process_trains_alike_in_both_ways(train_cfg: Callable[..., CfgNode]) -> None:
    losses = [
        losses_of_one_process(train_cfg("SOLVER.DATA_PARALLEL", way, "SOLVER.MAX_ITER", 2, output=way))
        for way in ("ddp", "fsdp2")
    ]
    assert losses[0] == losses[1]


def test_an_unknown_way_is_refused(train_cfg: Callable[..., CfgNode]) -> None:
    with pytest.raises(ValueError, match=r"unknown SOLVER.DATA_PARALLEL 'fsdp'; choose from \('ddp', 'fsdp2'\)"):
        split_parameters(nn.Linear(1, 1), train_cfg("SOLVER.DATA_PARALLEL", "fsdp"))


def test_a_model_in_one_piece_is_neither_gathered_nor_wrapped(train_cfg: Callable[..., CfgNode]) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    accept_whole_tensors(model)
    split_optimizer_state(optimizer)
    with gathered(model):
        assert distribute(model, optimizer, train_cfg()) is model
    state = {"weights": [model.weight, 3], "name": "x"}
    assert whole(state)["weights"][0] is model.weight and whole(state)["name"] == "x"
