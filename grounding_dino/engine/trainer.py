"""Training and evaluation of all models: Detectron2's DefaultTrainer with our data, optimizer, step and state."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from grounding_dino import modeling  # noqa: F401  (registers the models)
from grounding_dino.checkpoint.adapters import merge_adapter
from grounding_dino.checkpoint.checkpointer import GroundingCheckpointer
from grounding_dino.checkpoint.sharded import has_split_parameters
from grounding_dino.data.build import build_test_loader, load_records
from grounding_dino.data.class_count import with_class_count
from grounding_dino.data.datasets import register_extra_datasets
from grounding_dino.data.loader import build_train_loader, pictures_an_epoch, start_stream_at
from grounding_dino.data.text_settings import check_all_names
from grounding_dino.engine.early_stop import EarlyStop, StopTraining
from grounding_dino.engine.ema import AverageWeights, build_average
from grounding_dino.engine.environment import make_deterministic, set_up_logging
from grounding_dino.engine.epochs import in_iterations
from grounding_dino.engine.evaluations import (
    EvaluateBefore,
    EvaluationRecord,
    Evaluations,
    check_metric_name,
    of_target,
)
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
from grounding_dino.engine.lora import SaveAdapter, build_adapters
from grounding_dino.engine.optimizer import build_optimizer
from grounding_dino.engine.parallel import distribute, gathered, split_parameters
from grounding_dino.engine.prompt_tuning import warn_of_changing_prompts
from grounding_dino.engine.train_step import TrainStep
from grounding_dino.engine.writers import WandbWriter, check_wandb
from grounding_dino.evaluation.build import build_evaluator, check_evaluation
from grounding_dino.modeling.mask_results import encoded_masks
from grounding_dino.precision import precision_of, running_in

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn
from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)


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
        cfg = with_class_count(DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size()))
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed() % 2**31
        logger.info("the seed of this run: %d", self.seed)
        check_test_sets(cfg)
        check_wandb(cfg)
        if cfg.SOLVER.DETERMINISTIC_ON:
            make_deterministic()
        torch.manual_seed(self.seed)  # equal initial weights in every process
        model = self.build_model(cfg)
        self.adapters = build_adapters(cfg, model)
        split_parameters(model, cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = build_train_loader(cfg, self.seed)
        warn_of_changing_prompts(cfg)
        self.cfg = cfg = in_iterations(cfg, pictures_an_epoch(data_loader))
        if cfg.SOLVER.MAX_ITER < 1:
            raise ValueError(f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}; give 1 or more (--eval-only trains nothing)")
        self._trainer = TrainStep(distribute(model, optimizer, cfg), data_loader, optimizer, cfg)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.average = build_average(cfg, model)
        self.record = EvaluationRecord(cfg.OUTPUT_DIR)
        self.checkpointer = GroundingCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            ignore=cfg.MODEL.WEIGHTS_IGNORE,
            warm_start=cfg.MODEL.WARM_START_ON,
            keep=cfg.SOLVER.CHECKPOINTS_KEPT,
            **self._saved_beside_the_model(),
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
        precision = precision_of(cfg)
        encoded = encoded_masks(model) if evaluators is None else contextlib.nullcontext()
        with gathered(model), encoded, running_in(precision, cfg.MODEL.DEVICE):
            return super().test(cfg, model, evaluators)

    def train(self) -> Any:  # type: ignore[override]
        """Train to SOLVER.MAX_ITER, or until SOLVER.EARLY_STOP ends it; the last results on DATASETS.TEST, if any."""
        try:
            return super().train()
        except StopTraining as reason:
            logger.info("%s", reason)
        results = getattr(self, "_last_eval_results", None)
        if results and len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's chain; with random numbers by iteration, norms in step, averages, the best checkpoint, ...

        Raises:
            ValueError: SOLVER.BEST_CHECKPOINT_METRIC cannot come about.
        """
        cfg = self.cfg
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise ValueError("TEST.PRECISE_BN.ENABLED is True, which this trainer does not support; set it to False")
        if cfg.SOLVER.CHECKPOINT_PERIOD < 1:
            raise ValueError(
                f"SOLVER.CHECKPOINT_PERIOD is {cfg.SOLVER.CHECKPOINT_PERIOD}; give a number of iterations (one above "
                "SOLVER.MAX_ITER saves at the end alone)"
            )
        chain: list[HookBase | None] = [SeedEveryStep(), FrozenNorms(), hooks.IterationTimer(), hooks.LRScheduler()]
        chain.append(EqualStatistics(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD))
        if self.average is not None:
            chain.append(AverageWeights(self.average))
        # Before evaluation, so that a failing evaluation does not cost the checkpoint.
        if comm.is_main_process() or has_split_parameters(self.model):  # whose parts all processes give
            chain.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        if self.adapters is not None and comm.is_main_process():
            chain.append(SaveAdapter(self.adapters, cfg.OUTPUT_DIR, cfg.TEST.EVAL_PERIOD, self.average))
        chain += self._evaluation_hooks()
        if comm.is_main_process():
            chain.append(SpeedReport(cfg.SOLVER.IMS_PER_BATCH))
            chain.append(hooks.PeriodicWriter(self.build_writers(), period=REPORT_PERIOD))
        if cfg.SOLVER.EARLY_STOP.PATIENCE:
            chain.append(EarlyStop(cfg, self.record, self.checkpointer))
        return chain

    def _evaluation_hooks(self) -> list[HookBase | None]:
        cfg = self.cfg
        evaluations = Evaluations(cfg, self.test, self.record, self.average)

        def evaluate(steps: int | None = None) -> Mapping[str, Any]:
            done = min(self.iter + 1, self.max_iter) if steps is None else steps
            results = evaluations(self.model, done)
            self._last_eval_results = of_target(results)
            return results

        before = EvaluateBefore(evaluate, self.record, enabled=bool(cfg.TEST.RETAINED))
        chain: list[HookBase | None] = [before, hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate)]
        if cfg.SOLVER.BEST_CHECKPOINT_METRIC:
            check_metric_name(cfg)
            best = BestModelFile(
                self.checkpointer.model,
                cfg.OUTPUT_DIR,
                cfg.SOLVER.BEST_CHECKPOINT_METRIC,
                **self._saved_beside_the_model(),
            )
            chain.append(BestCheckpointer(cfg.TEST.EVAL_PERIOD, best, self.record))
        return chain

    def _saved_beside_the_model(self) -> dict[str, Any]:
        # Loaded in this order, so that what other parameters are trained than before is said in words. A weak
        # reference: the trainer owns its checkpointers.
        objects = {"lora": self.adapters, "ema": self.average, "trainer": weakref.proxy(self)}
        return {name: value for name, value in objects.items() if value is not None}

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's (log, metrics.json, TensorBoard), and Weights & Biases where SOLVER.WANDB_PROJECT names one."""
        writers = super().build_writers()
        if self.cfg.SOLVER.WANDB_PROJECT:
            trainer = weakref.proxy(self)
            writers.append(WandbWriter(self.cfg, resumes=lambda: trainer.start_iter > 0))
        return writers

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
        rest = self.checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        if cfg.MODEL.LORA.WEIGHTS and not resumes:
            merge_adapter(self.checkpointer.model, cfg.MODEL.LORA.WEIGHTS, rest)
        if self.average is not None and self.average.steps == 0:  # a start, or the first part of the run had none
            self.average.restart()
        if resumes:
            if self.average is None and "ema" in rest:
                logger.warning(
                    "the checkpoint holds averaged weights, which this run drops, and its own checkpoints lack; to "
                    "keep them, set SOLVER.EMA.ENABLED_ON True"
                )
            self.start_iter = self.iter + 1
            start_stream_at(self.data_loader, self.start_iter, self.seed)
            done, total = self.start_iter, self.max_iter
            logger.info("this run goes on with iteration %d of %d, seed %d", done, total, self.seed)
            if self.start_iter >= self.max_iter:
                logger.warning("all %d iterations are done; raise SOLVER.MAX_ITER to train longer", self.max_iter)

    def state_dict(self) -> dict[str, Any]:
        """With the seed, which SEED -1 draws anew in each run, and the pictures of a step."""
        return {**super().state_dict(), "seed": self.seed, "pictures": self.cfg.SOLVER.IMS_PER_BATCH}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """With the seed; one that the config sets wins."""
        super().load_state_dict(state_dict)
        pictures = self.cfg.SOLVER.IMS_PER_BATCH
        if state_dict.get("pictures", pictures) != pictures:
            logger.warning(
                "the run so far had SOLVER.IMS_PER_BATCH %d; it goes on with %d, and in the data where it would stand "
                "if all its steps had taken so many: pictures are left out or come again",
                state_dict["pictures"],
                pictures,
            )
        before = state_dict.get("seed", self.seed)
        if self.cfg.SEED < 0:
            self.seed = before
        elif before != self.seed:
            logger.warning("the run so far had the seed %d; it goes on with SEED %d", before, self.seed)


def check_test_sets(cfg: CfgNode) -> None:
    """Load the data sets of DATASETS.TEST and TEST.RETAINED once: a missing one ends a run at its start, not its end.

    Raises:
        ValueError: one cannot be evaluated on, TEST.PRECISION is unknown, or a number of TEST cannot be.
    """
    precision_of(cfg)
    lowest = {"DETECTIONS_PER_IMAGE": 1, "MAX_DETECTIONS": 1}
    lowest |= dict.fromkeys(("CATEGORIES_PER_PROMPT", "DESCRIPTIONS_PER_PROMPT", "PROMPTS_PER_BATCH"), 0)
    for key, least in lowest.items():
        if cfg.TEST[key] < least:
            raise ValueError(f"TEST.{key} is {cfg.TEST[key]}; give {least} or more")
    register_extra_datasets(cfg.DATASETS.EXTRA)
    sets = {"DATASETS.TEST": cfg.DATASETS.TEST, "TEST.RETAINED": cfg.TEST.RETAINED}
    for key, name in [(key, name) for key, names in sets.items() for name in names]:
        try:
            records = load_records([name])
            check_evaluation(cfg, name, records)  # known of a file that --dataset names once it is read
            check_all_names(cfg, records, name)
        except (ValueError, OSError) as error:
            raise ValueError(
                f'{name!r} of {key} cannot be evaluated on: {error} (to train without evaluation, set {key} "()")'
            ) from error
