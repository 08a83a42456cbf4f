"""Training and evaluation of all models: Detectron2's DefaultTrainer with our data, optimizer, step and state."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from grounding_dino import modeling  # noqa: F401  (registers the models)
from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
from grounding_dino.checkpoint.sharded import has_split_parameters
from grounding_dino.data.build import build_test_loader, load_records
from grounding_dino.data.datasets import register_extra_datasets
from grounding_dino.data.loader import build_train_loader, start_stream_at
from grounding_dino.engine.environment import set_up_logging
from grounding_dino.engine.epochs import in_iterations
from grounding_dino.engine.hooks import (
    REPORT_PERIOD,
    BestCheckpointer,
    BestModelFile,
    EqualStatistics,
    FrozenNorms,
    SeedEveryStep,
    SpeedReport,
)
from grounding_dino.engine.initial_weights import load_initial_weights
from grounding_dino.engine.optimizer import build_optimizer
from grounding_dino.engine.parallel import distribute, gathered, split_parameters
from grounding_dino.engine.train_step import TrainStep
from grounding_dino.evaluation.build import build_evaluator, evaluator_kinds

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer(DefaultTrainer):
    """Trains `cfg` from the start or, after :meth:`resume_or_load`, exactly on from where a run stopped.

    A step's random numbers are a function of the seed, the iteration and the process, and the data loader starts at
    any batch of its stream, so nothing else need be saved to continue a run bit for bit.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            ValueError: a data set that is missing or yields nothing, or an option that does not exist; all before the
                first iteration.
        """
        TrainerBase.__init__(self)
        if not logger.isEnabledFor(logging.INFO):
            set_up_logging()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed() % 2**31
        logger.info("the seed of this run: %d", self.seed)
        check_test_sets(cfg)
        torch.manual_seed(self.seed)  # equal initial weights in every process
        model = self.build_model(cfg)
        split_parameters(model, cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = build_train_loader(cfg, self.seed)
        self.cfg = cfg = in_iterations(cfg, len(data_loader.dataset))
        self._trainer = TrainStep(distribute(model, optimizer, cfg), data_loader, optimizer, cfg)
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
        """See :func:`grounding_dino.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """See :func:`grounding_dino.data.build.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See :func:`grounding_dino.evaluation.build.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Metrics of the data set of DATASETS.TEST, or of several, keyed by their names."""
        register_extra_datasets(cfg.DATASETS.EXTRA)
        precision = _evaluation_precision(cfg)
        device = torch.device(cfg.MODEL.DEVICE).type
        with gathered(model), torch.autocast(device, precision, enabled=precision is not None):
            return super().test(cfg, model, evaluators)

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's chain; with random numbers by iteration, norms in step, a speed report, the best checkpoint.

        Raises:
            ValueError: SOLVER.BEST_CHECKPOINT_METRIC cannot come about.
        """
        cfg = self.cfg
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError("TEST.PRECISE_BN.ENABLED is True, which this trainer does not support; set it to False")

        def evaluate() -> OrderedDict[str, Any]:
            self._last_eval_results = self.test(cfg, self.model)
            return self._last_eval_results

        chain: list[HookBase | None] = [SeedEveryStep(), FrozenNorms(), hooks.IterationTimer(), hooks.LRScheduler()]
        chain.append(EqualStatistics(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD))
        # Before evaluation, so that a failing evaluation does not cost the checkpoint.
        if comm.is_main_process() or has_split_parameters(self.model):  # whose parts all processes give
            chain.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        chain.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate))
        if cfg.SOLVER.BEST_CHECKPOINT_METRIC:
            chain.append(self._best_checkpointer())
        if comm.is_main_process():
            chain.append(SpeedReport(cfg.SOLVER.IMS_PER_BATCH))
            chain.append(hooks.PeriodicWriter(self.build_writers(), period=REPORT_PERIOD))
        return chain

    def _best_checkpointer(self) -> HookBase | None:
        cfg, metric = self.cfg, self.cfg.SOLVER.BEST_CHECKPOINT_METRIC
        if cfg.TEST.EVAL_PERIOD <= 0:
            raise ValueError("SOLVER.BEST_CHECKPOINT_METRIC needs evaluations during training: set TEST.EVAL_PERIOD")
        first = metric.split("/")[0]
        if len(cfg.DATASETS.TEST) > 1 and first not in cfg.DATASETS.TEST:
            raise ValueError(
                f"SOLVER.BEST_CHECKPOINT_METRIC is {metric!r}, but with several data sets in DATASETS.TEST it has to "
                f"begin with one of them, as in '{cfg.DATASETS.TEST[0]}/{metric}'"
            )
        if not comm.is_main_process():
            return None
        # A weak reference: the trainer owns its hooks.
        best = BestModelFile(self.checkpointer.model, cfg.OUTPUT_DIR, metric, trainer=weakref.proxy(self))
        return BestCheckpointer(cfg.TEST.EVAL_PERIOD, best)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the weights to start from, or with `resume` the last checkpoint of OUTPUT_DIR with its run's state.

        Without a checkpoint there, or without `resume`, the run starts: from :func:`load_initial_weights` for the parts
        that MODEL.WEIGHTS may leave open, then from MODEL.WEIGHTS.
        """
        cfg = self.cfg
        resumes = resume and self.checkpointer.has_checkpoint()
        if resume and not resumes:
            logger.info("--resume, but %s has no checkpoint: this run starts at iteration 0", cfg.OUTPUT_DIR)
        if not resumes:
            load_initial_weights(cfg, self.checkpointer.model)
        self.checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        if resumes:
            self.start_iter = self.iter + 1
            start_stream_at(self.data_loader, self.start_iter, self.seed)
            done, total = self.start_iter, self.max_iter
            logger.info("this run goes on with iteration %d of %d, seed %d", done, total, self.seed)
            if self.start_iter >= self.max_iter:
                logger.warning("all %d iterations are done; raise SOLVER.MAX_ITER to train longer", self.max_iter)

    def state_dict(self) -> dict[str, Any]:
        """With the seed, which SEED -1 draws anew in each run."""
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """With the seed; one that the config sets wins."""
        super().load_state_dict(state_dict)
        before = state_dict.get("seed", self.seed)
        if self.cfg.SEED < 0:
            self.seed = before
        elif before != self.seed:
            logger.warning("the run so far had the seed %d; it goes on with SEED %d", before, self.seed)


def check_test_sets(cfg: CfgNode) -> None:
    """Load the data sets of DATASETS.TEST once, so that a missing one ends a run at its start and not at its end.

    Raises:
        ValueError: one cannot be evaluated on, or TEST.PRECISION is unknown.
    """
    _evaluation_precision(cfg)
    register_extra_datasets(cfg.DATASETS.EXTRA)
    for name in cfg.DATASETS.TEST:
        try:
            evaluator_kinds(name)
            load_records([name])
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{name!r} of DATASETS.TEST cannot be evaluated on: {error} (to train without evaluation, set "
                'DATASETS.TEST "()")'
            ) from error


def _evaluation_precision(cfg: CfgNode) -> torch.dtype | None:
    if cfg.TEST.PRECISION not in PRECISIONS:
        raise ValueError(f"unknown TEST.PRECISION {cfg.TEST.PRECISION!r}; choose from {sorted(PRECISIONS)}")
    return PRECISIONS[cfg.TEST.PRECISION]
