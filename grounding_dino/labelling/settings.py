"""How pictures are labelled: everything that a worker needs to know, and that a run may not change half-way."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from grounding_dino.labelling.words import Words

# Labels are detections: what else a model could give is not computed.
DETECTIONS_ALONE = ("TEST.PANOPTIC_ON", False, "TEST.SEMANTIC_ON", False)

MERGING_NMS = 0.5  # IoU from which boxes of one class in several tiles are one object, where nobody said


@dataclasses.dataclass(frozen=True)
class LabelSettings:
    """Passed to workers, on other machines too.

    Attributes:
        config, weights, device, opts: of `load_predictor`.
        words: what to look for in pictures without words of their own; {} of a model of fixed classes.
        box_threshold: a number, or a :class:`grounding_dino.thresholds.CategoryThresholds`.
        not_wanted: names that compete and are dropped.
        nms: IoU above which the worse of two boxes of a class goes; None keeps all.
        tile_size: side in pixels of the squares that pictures are looked at in, too; 0: as a whole only.
        tile_overlap: share of a tile that its neighbour sees, too.
        masks: records hold them, where the model gives them.
        batch_size: pictures, or tiles, run at once.
        threads: of a worker on the CPU.
    """

    config: str
    weights: str | None = None
    device: str | None = None
    opts: tuple[Any, ...] = ()
    words: Words = dataclasses.field(default_factory=dict)
    box_threshold: Any = 0.35
    text_threshold: float = 0.25
    not_wanted: tuple[str, ...] = ()
    nms: float | None = None
    tile_size: int = 0
    tile_overlap: float = 0.2
    masks: bool = True
    batch_size: int = 1
    threads: int = 1

    @property
    def merging_nms(self) -> float | None:
        """The IoU of non-maximum suppression, which tiles need."""
        return MERGING_NMS if self.nms is None and self.tile_size else self.nms

    def on_device(self, device: str) -> LabelSettings:
        """The same on another device."""
        return dataclasses.replace(self, device=device)

    def thresholds(self) -> dict[str, Any]:
        """The predictor's arguments of this kind."""
        return {"box_threshold": self.box_threshold, "text_threshold": self.text_threshold}

    def rivals(self) -> dict[str, Any]:
        """The predictor's argument for names that are not wanted."""
        return {"not_wanted": list(self.not_wanted)} if self.not_wanted else {}


def described_settings(settings: LabelSettings, cfg_text: str, inputs: Sequence[str], own_words: str | None) -> Words:
    """What decides about the labels, by the words of the command line, as json: a run goes on only with the same.

    Not in it are the device, the size of batches and the number of workers, which change labels by rounding at most.

    Args:
        cfg_text: the configuration as text, without device and weights.
    """
    threshold = settings.box_threshold
    if dataclasses.is_dataclass(threshold) and not isinstance(threshold, type):
        threshold = dataclasses.asdict(threshold)
    return {
        "--input": [path if "://" in path else os.path.abspath(path) for path in inputs],
        "--config-file or --opts": cfg_text,
        "--weights": _described_file(settings.weights),
        "the categories or the caption": settings.words,
        "--per-picture": own_words,
        "--confidence-threshold or --thresholds": threshold,
        "--text-threshold": settings.text_threshold,
        "--not-wanted": list(settings.not_wanted),
        "--nms": settings.merging_nms,
        "--tile-size": settings.tile_size,
        "--tile-overlap": settings.tile_overlap if settings.tile_size else None,
        "--masks none or others": settings.masks,
    }


def _described_file(path: str | None) -> list[Any] | None:
    """Name, size and time of a file of weights; of anything else the name."""
    if path is None:
        return None
    if not os.path.isfile(path):
        return [path]
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]
