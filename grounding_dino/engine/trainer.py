"""Training and evaluation of all models: Detectron2's DefaultTrainer with our data, optimizer, step and state."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from grounding_dino import modeling  # noqa: F401  (registers the models)
from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
from grounding_dino.data.build import build_test_loader
from grounding_dino.data.loader import build_train_loader
from grounding_dino.engine.optimizer import build_optimizer
from grounding_dino.engine.train_step import TrainStep
from grounding_dino.evaluation.refexp import RefExpEvaluator

logger = logging.getLogger(__name__)

EVALUATORS = {
    "coco": lambda cfg, name, folder: COCOEvaluator(name, tasks=("bbox",), output_dir=folder),
    "refexp": lambda cfg, name, folder: RefExpEvaluator(name, output_dir=folder),
}


class Trainer(DefaultTrainer):
    """Trains `cfg` from the start or, after :meth:`resume_or_load`, exactly on from where a run stopped.

    A step's random numbers are a function of the seed, the iteration and the process, and the data loader starts at
    any batch of its stream, so nothing else need be saved to continue a run bit for bit.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed() % 2**31
        torch.manual_seed(self.seed)  # equal initial weights in every process
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = build_train_loader(cfg, self.seed)
        self._trainer = TrainStep(_distribute(model, cfg), data_loader, optimizer, cfg)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = GroundingCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            ignore=cfg.MODEL.WEIGHTS_IGNORE,
            warm_start=cfg.MODEL.WARM_START_ON,
            keep=cfg.SOLVER.CHECKPOINTS_KEPT,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
        if kind not in EVALUATORS:
            raise ValueError(f"data set {dataset_name!r} asks for evaluator {kind!r}; known are {sorted(EVALUATORS)}")
        return EVALUATORS[kind](cfg, dataset_name, f"{cfg.OUTPUT_DIR}/inference/{dataset_name}")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Metrics of every data set of DATASETS.TEST, keyed by its name where there are several."""
        precision = _evaluation_precision(cfg)
        with torch.autocast(torch.device(cfg.MODEL.DEVICE).type, precision, enabled=precision is not None):
            return super().test(cfg, model, evaluators)

    def build_hooks(self) -> list[HookBase | None]:
        cfg = self.cfg
        main = comm.is_main_process()
        chain: list[HookBase | None] = [SeedEveryStep(self), hooks.IterationTimer(), hooks.LRScheduler()]
        if main:
            chain.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))

        def evaluate() -> OrderedDict[str, Any]:
            self._last_eval_results = self.test(cfg, self.model)
            return self._last_eval_results

        chain.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate))
        if cfg.SOLVER.BEST_CHECKPOINT_METRIC and main:
            if cfg.TEST.EVAL_PERIOD <= 0:
                raise ValueError("SOLVER.BEST_CHECKPOINT_METRIC needs evaluations during training: set TEST.EVAL_PERIOD")
            metric = cfg.SOLVER.BEST_CHECKPOINT_METRIC
            chain.append(hooks.BestCheckpointer(cfg.TEST.EVAL_PERIOD, self.checkpointer, metric))
        if main:
            chain.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return chain

    def resume_or_load(self, resume: bool = True) -> None:
        """Load MODEL.WEIGHTS, or with `resume` the last checkpoint of OUTPUT_DIR with the state of its run."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1
            stream = self.data_loader.batch_sampler
            stream.start, stream.seed = self.start_iter, self.seed
            self.data_loader.dataset.seed = self.seed

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.cfg.SEED < 0:
            self.seed = state_dict.get("seed", self.seed)


class SeedEveryStep(HookBase):
    """Makes the random numbers of a step a function of the seed, the iteration and the process."""

    def __init__(self, trainer: Trainer) -> None:
        self._owner = weakref.proxy(trainer)

    def before_step(self) -> None:
        generator = torch.Generator().manual_seed(self._owner.seed * 1_000_003 + self._owner.iter)
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)) + comm.get_rank())


def _distribute(model: nn.Module, cfg: CfgNode) -> nn.Module:
    if torch.device(cfg.MODEL.DEVICE).type == "cuda":
        return create_ddp_model(model, broadcast_buffers=False)
    return create_ddp_model(model, broadcast_buffers=False, device_ids=None)


def _evaluation_precision(cfg: CfgNode) -> torch.dtype | None:
    name = cfg.TEST.PRECISION
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ValueError(f"unknown TEST.PRECISION {name!r}; choose from {sorted(dtypes)}")
    return dtypes[name]


def evaluate_and_print(cfg: CfgNode, model: nn.Module) -> OrderedDict[str, Any]:
    """Run :meth:`Trainer.test` and print each data set's metrics in a line that can be copied."""
    results = Trainer.test(cfg, model)
    if comm.is_main_process() and len(cfg.DATASETS.TEST) > 1:
        for name, result in results.items():
            logger.info("%s:", name)
            print_csv_format(result)
    return results
