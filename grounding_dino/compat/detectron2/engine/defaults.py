"""The default workflow from a config: predict pictures, train a model."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

from . import hooks
from ._arguments import default_argument_parser
from ._setup import create_ddp_model, default_setup, default_writers
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]

logger = logging.getLogger(__name__)

WRITER_PERIOD = 20


class DefaultPredictor:
    """A model with its weights that predicts one BGR picture at a time.

    Attributes:
        metadata: of the config's first test data set.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg.clone()  # the model may change it
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(
                f"INPUT.FORMAT is {self.input_format!r}, but DefaultPredictor takes 'RGB' or 'BGR' models."
            )

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict a picture (H, W, 3) in BGR order; returns the model's output for it."""
        with torch.no_grad():
            if self.input_format == "RGB":
                original_image = original_image[:, :, ::-1]
            height, width = original_image.shape[:2]
            resized = self.aug.get_transform(original_image).apply_image(original_image)
            image = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1)).to(self.cfg.MODEL.DEVICE)
            predictions = self.model([{"image": image, "height": height, "width": width}])
            return predictions[0]


class DefaultTrainer(TrainerBase):
    """A training as a config describes it: model, optimizer, data, schedule, checkpoints, evaluation.

    Each part is built by a method of its own, to be overridden by a subclass. Inside, a `SimpleTrainer` (or, with
    SOLVER.AMP.ENABLED, an `AMPTrainer`) makes the steps.

    Attributes:
        scheduler: of the learning rate.
        checkpointer: saves to and loads from OUTPUT_DIR.
        cfg: the config, scaled to the number of processes.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):  # nobody has set up logging
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A weak reference: the trainer owns its checkpointer.
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint in OUTPUT_DIR and go on after its iteration; without one, load MODEL.WEIGHTS.

        Args:
            resume: False loads MODEL.WEIGHTS and starts at iteration 0, whatever is in OUTPUT_DIR.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # The checkpoint holds the iteration that was done last.
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[HookBase | None]:
        """The hooks, in the order in which they are called.

        Raises:
            NotImplementedError: TEST.PRECISE_BN is enabled.
        """
        cfg = self.cfg.clone()
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise NotImplementedError("TEST.PRECISE_BN needs an installed upstream Detectron2.")

        def test_and_save_results() -> Any:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        result: list[HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler()]
        # Before evaluation, so that a failing evaluation does not cost the checkpoint.
        if comm.is_main_process():
            result.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        result.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results))
        # Last, so that the evaluation's results are written too.
        if comm.is_main_process():
            result.append(hooks.PeriodicWriter(self.build_writers(), period=WRITER_PERIOD))
        return result

    def build_writers(self) -> list[EventWriter]:
        """Writers of metrics, see `default_writers`."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Any:  # type: ignore[override]
        """Train from `start_iter` to `max_iter`; returns the last evaluation's results, if there were any."""
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            if not hasattr(self, "_last_eval_results"):
                raise RuntimeError("TEST.EXPECTED_RESULTS is set, but there was no evaluation to hold against it.")
            verify_results(self.cfg, self._last_eval_results)
        return getattr(self, "_last_eval_results", None)

    def run_step(self) -> None:
        """One step of the trainer inside."""
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        """With that of the trainer inside."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """With that of the trainer inside."""
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @property
    def model(self) -> nn.Module:
        """The model, perhaps wrapped for data parallelism."""
        return self._trainer.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._trainer.model = model

    @property
    def data_loader(self) -> Any:
        """The training loader."""
        return self._trainer.data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return self._trainer.optimizer

    @classmethod
    def build_model(cls, cfg: Any) -> nn.Module:
        """The model."""
        model = build_model(cfg)
        logger.info("model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: Any, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: Any, optimizer: torch.optim.Optimizer) -> Any:
        """The learning-rate schedule."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: Any) -> Any:
        """An endless iterable of training batches."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: Any, dataset_name: str) -> Any:
        """A loader of a test data set."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluator | list[DatasetEvaluator]:
        """The evaluator of a test data set: to be defined by a subclass.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError(
            f"{cls.__name__} does not define build_evaluator: define it, give `evaluators` to test(), or set "
            "TEST.EVAL_PERIOD to 0 and DATASETS.TEST to ()."
        )

    @classmethod
    def test(cls, cfg: Any, model: nn.Module, evaluators: Sequence[Any] | None = None) -> Any:
        """Evaluate a model on all data sets of DATASETS.TEST.

        Args:
            evaluators: one a data set; None builds them by `build_evaluator`.

        Returns:
            the metrics of the data set; of several, a dict of them by name.

        Raises:
            ValueError: there are not as many evaluators as data sets.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(f"{len(names)} data sets to test ({', '.join(names)}), but {len(evaluators)} evaluators.")
        results: OrderedDict[str, Any] = OrderedDict()
        for index, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = evaluators[index] if evaluators is not None else cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("%s is not evaluated: %s", name, error)
                results[name] = {}
                continue
            metrics = inference_on_dataset(model, data_loader, evaluator)
            results[name] = metrics
            if comm.is_main_process() and metrics:
                logger.info("evaluation results for %s in csv format:", name)
                print_csv_format(metrics)
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: Any, num_workers: int) -> Any:
        """Scale a config made for SOLVER.REFERENCE_WORLD_SIZE processes to `num_workers` processes.

        The batch and the learning rate grow in proportion, the iterations shrink (Goyal et al. 2017). A reference of
        0 turns this off. The config given is left as it is.

        Raises:
            ValueError: the batch cannot be shared equally among the reference's processes.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference == 0 or reference == num_workers:
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {reference} processes "
                "(SOLVER.REFERENCE_WORLD_SIZE) cannot share equally."
            )
        cfg = cfg.clone()
        frozen = cfg.is_frozen()
        cfg.defrost()
        scale = num_workers / reference
        solver = cfg.SOLVER
        solver.IMS_PER_BATCH = int(round(solver.IMS_PER_BATCH * scale))
        solver.BASE_LR = solver.BASE_LR * scale
        solver.MAX_ITER = int(round(solver.MAX_ITER / scale))
        solver.WARMUP_ITERS = int(round(solver.WARMUP_ITERS / scale))
        solver.STEPS = tuple(int(round(step / scale)) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = int(round(cfg.TEST.EVAL_PERIOD / scale))
        solver.CHECKPOINT_PERIOD = int(round(solver.CHECKPOINT_PERIOD / scale))
        solver.REFERENCE_WORLD_SIZE = num_workers
        logger.info(
            "scaled to %d processes: batch %d, learning rate %g, %d iterations, warm-up %d, steps %s",
            num_workers,
            solver.IMS_PER_BATCH,
            solver.BASE_LR,
            solver.MAX_ITER,
            solver.WARMUP_ITERS,
            solver.STEPS,
        )
        if frozen:
            cfg.freeze()
        return cfg
