"""What an exported file says about its model: how pictures and texts enter it, and how its answers are read.

It is json, in the file's own metadata under the key METADATA_KEY, so that the file alone is enough. A vocabulary of
one's own it only names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

METADATA_KEY = "grounding_dino"
VERSION = 1

Part = TypeVar("Part")


@dataclass(frozen=True)
class TextDescription:
    """How a model reads prompts, see `PromptBuilder`.

    Attributes:
        max_tokens: of a prompt, [CLS] and [SEP] included.
        sub_sentence: tokens attend inside their own phrase; else to the whole text.
        names_per_prompt: at most; 0 lists as many as fit.
        vocabulary: as MODEL.TEXT_ENCODER.VOCABULARY; a path has to lead to the file wherever the model is used.
    """

    max_tokens: int = 256
    sub_sentence: bool = True
    names_per_prompt: int = 0
    vocabulary: str = ""


@dataclass(frozen=True)
class ClassDescription:
    """The classes of a model without text, see `FixedClasses`; `things` None: nobody said."""

    names: tuple[str, ...]
    columns: tuple[int, ...]
    exclusive: bool = False
    things: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.columns):
            raise ValueError(f"there are {len(self.names)} names of classes for {len(self.columns)} columns")


@dataclass(frozen=True)
class MaskDescription:
    """What a model with masks gives, see `MaskResults`."""

    instance: bool = True
    panoptic: bool = False
    semantic: bool = False
    object_mask_threshold: float = 0.25
    overlap_threshold: float = 0.8
    temperature: float = 0.06
    mask_scores: bool = True


@dataclass(frozen=True)
class DenseDescription:
    """How detections of a dense detector (GLIP) are chosen, see `DenseDetections`; `strides` of its levels."""

    strides: tuple[int, ...]
    score_threshold: float = 0.05
    pre_nms_topk: int = 1000
    nms_threshold: float = 0.6
    rank_by_centerness: bool = True
    nms_last_pixel: bool = True


@dataclass(frozen=True)
class ModelDescription:
    """All of it.

    Attributes:
        name: of the configuration, for messages.
        family: "grounding_dino", "dino", "mask_dino" or "glip", for readers.
        input_format: order of the channels of `images`, "RGB" or "BGR".
        min_size, max_size: of pictures, see `PicturePreparation`.
        size_divisibility: sides of pictures are padded to multiples of it; 0 and 1 do not pad.
        padding_counts: this padding is picture to the model: boxes and masks are relative to it too.
        detections_per_image: best (query, category) pairs kept; of every prompt, and of all prompts together.
        text, classes: what can be found: just one of them is there.
        masks: None for boxes alone.
        dense: None but for dense detectors.
    """

    name: str
    family: str = "grounding_dino"
    input_format: str = "RGB"
    min_size: int = 800
    max_size: int = 1333
    size_divisibility: int = 0
    padding_counts: bool = False
    detections_per_image: int = 300
    text: TextDescription | None = None
    classes: ClassDescription | None = None
    masks: MaskDescription | None = None
    dense: DenseDescription | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.classes is None):
            raise ValueError("a model has either a text or fixed classes")

    def to_json(self) -> str:
        """What :meth:`from_json` reads."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """The description that an exported file holds.

        Raises:
            ValueError: it is none, or of another version.
        """
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
                raise ValueError(f"it is not of version {VERSION}")
            parts: dict[str, type[Any]] = {
                "text": TextDescription,
                "classes": ClassDescription,
                "masks": MaskDescription,
                "dense": DenseDescription,
            }
            for key, part in parts.items():
                if fields.get(key) is not None:
                    fields[key] = _part(part, fields[key])
            return _part(cls, fields)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"the description of the model cannot be read ({error}); export it anew with this release"
            ) from error


def _part(kind: type[Part], fields: Mapping[str, Any]) -> Part:
    """A dataclass of its fields; json has lists for tuples."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"{fields!r} stands where the fields of a {kind.__name__} are expected")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})
