"""The classes of a closed-set model: columns of its class head, names, and which of them are things."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from grounding_dino.modeling.transformer_decoder.heads import num_class_columns

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor


@dataclass(frozen=True)
class FixedClasses:
    """What the columns of a linear class head mean.

    `columns[i]` is the column of class i of the data set; columns without a class are never predicted. With a
    cross-entropy the last column of the head means "no object" and is no class.
    """

    columns: tuple[int, ...]
    exclusive: bool = False  # probabilities by softmax with "no object" last, or by a sigmoid a class
    things: frozenset[int] | None = None  # class indices; None: nobody said
    stuff_has_boxes: bool = True  # False: only boxes of things are learned
    names: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def category_indices(self) -> range:
        """The classes, as :class:`Prompt` lists its categories."""
        return range(len(self.columns))

    @cached_property
    def _columns(self) -> Tensor:
        return torch.tensor(self.columns, dtype=torch.int64)

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (..., classes) in float32 or better from a head's logits (..., columns)."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        probability = logits.softmax(-1) if self.exclusive else logits.sigmoid()
        return probability[..., self._columns.to(logits.device)]

    def columns_of(self, labels: Tensor) -> Tensor:
        """The columns of class indices (N,)."""
        return self._columns.to(labels.device)[labels]

    def have_boxes(self, labels: Tensor) -> Tensor | None:
        """Whether the boxes of class indices (N,) are learned; None: all are."""
        return None if self.stuff_has_boxes else self.are_things(labels)

    def are_things(self, labels: Tensor) -> Tensor:
        """Which of class indices (N,) are things; raises as :meth:`thing_indices`."""
        return torch.isin(labels, torch.tensor(sorted(self.thing_indices()), dtype=labels.dtype, device=labels.device))

    def thing_indices(self) -> frozenset[int]:
        """The classes that are things.

        Raises:
            ValueError: nobody said which.
        """
        if self.things is None:
            raise ValueError(
                "panoptic models need to know which classes are things: name a data set with "
                "thing_dataset_id_to_contiguous_id in its metadata in DATASETS.TEST or DATASETS.TRAIN, or set "
                "TEST.PANOPTIC_ON False"
            )
        return self.things


def fixed_classes(cfg: CfgNode) -> FixedClasses | None:
    """The classes of a model without text; None where text names them. Names and things come from the data sets.

    Raises:
        ValueError: MODEL.CLASS_HEAD.CATEGORY_IDS lists a column that the head does not have, or one twice; or options
            that do not go with text, or with fixed classes.
    """
    if cfg.MODEL.TEXT_ENCODER.NAME:
        _check_no_class_options(cfg)
        return None
    if cfg.MODEL.CLASS_HEAD.NAME == "TokenContrast":
        raise ValueError(
            "MODEL.CLASS_HEAD.NAME is 'TokenContrast', which compares with text, but MODEL.TEXT_ENCODER.NAME is empty; "
            "set CLASS_HEAD.NAME 'Linear' and CLASS_HEAD.NUM_CLASSES, or name a text encoder"
        )
    exclusive = cfg.MODEL.LOSS.CLASS == "cross_entropy"
    num_classes = num_class_columns(cfg) - exclusive
    columns = tuple(cfg.MODEL.CLASS_HEAD.CATEGORY_IDS) or tuple(range(num_classes))
    if len(set(columns)) < len(columns) or not 0 <= min(columns) <= max(columns) < num_classes:
        raise ValueError(
            f"MODEL.CLASS_HEAD.CATEGORY_IDS has {len(columns)} entries from {min(columns)} to {max(columns)}, but they "
            f"have to be different columns of a head of {num_classes} (MODEL.CLASS_HEAD.NUM_CLASSES)"
        )
    rows = cfg.MODEL.DENOISING.NUM_LABELS
    if cfg.MODEL.DENOISING.ENABLED_ON and rows <= max(columns):
        raise ValueError(
            f"MODEL.DENOISING.NUM_LABELS is {rows}, but labels run to column {max(columns)} of the class head; set it "
            f"to {num_classes} (MODEL.CLASS_HEAD.NUM_CLASSES), or DENOISING.ENABLED_ON False"
        )
    names, things = _said_by_config(cfg, len(columns)) or _said_by_data_sets(cfg, len(columns))
    return FixedClasses(columns, exclusive, things, cfg.MODEL.LOSS.BOXES_OF_STUFF_ON, names)


def _check_no_class_options(cfg: CfgNode) -> None:
    """See that a model with text does not ask for what only fixed classes have."""
    for key, value, of_classes, of_text in (
        ("CLASS_HEAD.NAME", cfg.MODEL.CLASS_HEAD.NAME, "Linear", "TokenContrast"),
        ("LOSS.CLASS", cfg.MODEL.LOSS.CLASS, "cross_entropy", "focal"),  # the last token is not "no object"
        ("LOSS.BOXES_OF_STUFF_ON", cfg.MODEL.LOSS.BOXES_OF_STUFF_ON, False, True),  # all that text names is a thing
    ):
        if value == of_classes:
            raise ValueError(
                f"MODEL.{key} is {value!r}, which needs fixed classes, but MODEL.TEXT_ENCODER.NAME is "
                f"{cfg.MODEL.TEXT_ENCODER.NAME!r}; set {key} {of_text!r}, or TEXT_ENCODER.NAME ''"
            )


def _said_by_config(cfg: CfgNode, count: int) -> tuple[tuple[str, ...], frozenset[int] | None] | None:
    """Names and things of MODEL.CLASS_HEAD; None where it names none.

    Raises:
        ValueError: another number of names than of classes, or a thing that is no class.
    """
    names, things = tuple(cfg.MODEL.CLASS_HEAD.CLASS_NAMES), frozenset(cfg.MODEL.CLASS_HEAD.THINGS)
    if not names:
        return None
    if len(names) != count or not things <= set(range(count)):
        raise ValueError(
            f"MODEL.CLASS_HEAD.CLASS_NAMES has {len(names)} names and THINGS {sorted(things)}, but the model has "
            f"{count} classes, counted from 0; set both to [] to fine-tune on other ones"
        )
    return names, things or None


def _said_by_data_sets(cfg: CfgNode, count: int) -> tuple[tuple[str, ...], frozenset[int] | None]:
    """Names and things of the first data set whose metadata knows `count` classes; things of one alike if need be."""
    names: tuple[str, ...] = ()
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        for kind in ("stuff_classes", "thing_classes"):  # joint sets list all classes among the stuff
            if len(metadata.get(kind, ())) == count and names in ((), tuple(metadata.get(kind))):
                ids = metadata.get("thing_dataset_id_to_contiguous_id")
                things = frozenset(range(count)) if kind == "thing_classes" else None
                names = tuple(metadata.get(kind))
                if ids or things is not None:
                    return names, frozenset(ids.values()) if ids else things
    return names or tuple(f"class {index}" for index in range(count)), None
