"""Pictures with boxes and the text that names them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grounding_dino.data.augmentation import build_training_augmentations
from grounding_dino.data.mappers.build import MAPPER_REGISTRY
from grounding_dino.data.mappers.ground_truth import annotated_instances
from grounding_dino.data.mappers.own_text import caption_as_seen, mirrored_words, phrases_of, referred
from grounding_dino.data.mappers.reading import PictureReader, image_tensor, transformed
from grounding_dino.data.text_sampling import TextSampler
from grounding_dino.data.text_settings import (
    TextSettings,
    check_names,
    default_settings,
    rename,
    settings_by_dataset,
)
from grounding_dino.text.prompt import normalised_name

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import Tensor

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class Treatment:
    """What happens to the records of a data set.

    Attributes:
        augmentations: of pictures prompted by class names.
        text_augmentations: of pictures with a text of their own, which may speak of places: no cropping.
        sampler: draws training prompts; not needed in testing.
        prompt_names: category name -> the name that prompts write.
    """

    augmentations: Sequence[T.Augmentation]
    text_augmentations: Sequence[T.Augmentation]
    sampler: TextSampler | None = None
    prompt_names: Mapping[str, str] = field(default_factory=dict)


@MAPPER_REGISTRY.register()
class TextDetectionMapper:
    """A record to a model input: `image` (C, H, W) uint8, its text and, in training, `instances`.

    The text of a record is its own `caption` (with `phrases`, character spans), its own `categories`, or else the
    class names of its data set. `category_id` of an annotation indexes the phrases, or the categories. A caption
    without `phrases` is one phrase; one with an empty list of them names nothing in the picture. In testing the text
    is handed on whole and in order. In training a prompt is drawn from the categories (see :class:`TextSampler`), and
    `gt_classes` indexes what was drawn; captions stay whole. Where a picture of a caption or of referring expressions
    is mirrored, "left" and "right", or "above" and "below" and the like, change places in its words.

    Call it with a record; it is not changed. In training None means: the picture cannot be used, take another. In
    testing an unreadable picture is replaced by a black one, so that it counts as missed and the evaluation goes on.

    Args:
        is_train: draw prompts and keep the ground truth.
        augmentations: of pictures prompted by class names.
        text_augmentations: of pictures with a text of their own, which may speak of places: no cropping.
        image_format: "RGB" or "BGR".
        sampler: draws training prompts; not needed in testing.
        class_names: data set name -> its class names; others are looked up in the metadata when needed.
        default_dataset: the data set of records that do not say theirs in `dataset_name`.
        masks_on: `gt_masks` too, as `BitMasks`; objects without a segmentation are left out then.
        descriptions_per_prompt: referring expressions asked for at once in testing; 0 asks for all of a picture.
        by_dataset: data set name -> what happens to its records instead.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        text_augmentations: Sequence[T.Augmentation] | None = None,
        image_format: str = "RGB",
        sampler: TextSampler | None = None,
        class_names: dict[str, list[str]] | None = None,
        default_dataset: str = "",
        masks_on: bool = False,
        descriptions_per_prompt: int = 0,
        by_dataset: Mapping[str, Treatment] | None = None,
    ) -> None:
        default = Treatment(augmentations, augmentations if text_augmentations is None else text_augmentations, sampler)
        self.treatments = dict(by_dataset or {})
        if is_train and any(treatment.sampler is None for treatment in (default, *self.treatments.values())):
            raise ValueError("a mapper for training needs a sampler that draws prompts")
        self.is_train = is_train
        self.default_treatment = default
        self.reader = PictureReader(image_format, is_train)
        self.class_names = dict(class_names or {})
        self.default_dataset = default_dataset
        self.masks_on = masks_on
        self.descriptions_per_prompt = descriptions_per_prompt

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read INPUT and DATASETS.TEXT, and take over the class names of the data sets that are loaded.

        Raises:
            ValueError: one of their keys is out of range, a class name cannot stand in a prompt, or a model that reads
                no text is to be trained: it would be told the places of classes in drawn prompts.
        """
        if is_train and not cfg.MODEL.TEXT_ENCODER.NAME:
            raise ValueError(
                "INPUT.MAPPER TextDetectionMapper makes prompts, but the model reads no text (MODEL.TEXT_ENCODER.NAME "
                "is empty); set INPUT.MAPPER InstanceMapper, or PanopticMapper or SemanticMapper for such data"
            )
        names = tuple(cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)
        default = _treatment(cfg, default_settings(cfg), is_train)
        treatments = {name: _treatment(cfg, settings, is_train) for name, settings in settings_by_dataset(cfg).items()}
        class_names = {}
        for name in names:
            if hasattr(MetadataCatalog.get(name), "thing_classes"):
                prompt_names = treatments.get(name, default).prompt_names
                class_names[name] = rename(MetadataCatalog.get(name).thing_classes, prompt_names, name)
                check_names(cfg, class_names[name], f"the data set {name!r}")
        return {
            "is_train": is_train,
            "augmentations": default.augmentations,
            "text_augmentations": default.text_augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "sampler": default.sampler,
            "class_names": class_names,
            "default_dataset": names[0] if len(names) == 1 else "",
            "masks_on": cfg.MODEL.MASK_ON,
            "descriptions_per_prompt": cfg.TEST.DESCRIPTIONS_PER_PROMPT,
            "by_dataset": treatments,
        }

    def __call__(self, record: Record) -> Record | None:
        sample, image = self.reader.read(record)
        if image is None:
            return None
        own_text = "caption" in record or "categories" in record
        treatment = self._treatment_of(record)
        augmentations = treatment.text_augmentations if own_text else treatment.augmentations
        pixels, transforms = transformed(image, T.AugmentationList(list(augmentations)))
        sample["image"] = image_tensor(pixels.image)
        if not self.is_train:
            return {**sample, **self._whole_text(record)}
        instances = annotated_instances({**record, **sample}, transforms, pixels.image.shape[:2], self.masks_on)
        if "caption" in record:
            instances.remove("places")
            return {**sample, **caption_as_seen(record, transforms), "instances": instances}
        names, chosen = self._draw_names(record, instances)
        if not chosen:
            logger.warning("no name of %s fits into a prompt; the picture is left out", record.get("file_name"))
            return None
        if record.get("referring"):
            names = [mirrored_words(name, transforms)[0] for name in names]
        categories = [names[index] for index in chosen]
        return {**sample, "categories": categories, "instances": _renumbered(instances, chosen, len(names))}

    def most_labels(self, record: Record) -> int:
        """Upper bound on the names or phrases in a training prompt of `record`, 0 where it has no object to name."""
        sampler = self._sampler_of(record)
        objects = [annotation for annotation in record.get("annotations", ()) if not annotation.get("iscrowd", 0)]
        if not objects:
            return 0
        if "caption" in record:
            return len(phrases_of(record))
        names = self._names(record)
        if not record.get("referring"):
            return sampler.most_categories(names, len({annotation["category_id"] for annotation in objects}))
        boxes = referred(objects)
        return sampler.most_expressions([names[index] for index in boxes], list(boxes.values()))

    def _treatment_of(self, record: Record) -> Treatment:
        return self.treatments.get(record.get("dataset_name", self.default_dataset), self.default_treatment)

    def _sampler_of(self, record: Record) -> TextSampler:
        sampler = self._treatment_of(record).sampler
        assert sampler is not None, "a mapper for training has one"
        return sampler

    def _whole_text(self, record: Record) -> Record:
        if "caption" in record:
            return {key: record[key] for key in ("caption", "phrases") if key in record}
        text: Record = {"categories": list(self._names(record))}
        if record.get("referring"):
            text.update({key: record[key] for key in ("referring", "token_score") if key in record})
            text["names_per_prompt"] = self.descriptions_per_prompt
        return text

    def _names(self, record: Record) -> list[str]:
        """The record's own categories, or the class names of its data set, as prompts write them."""
        if "categories" in record:
            prompt_names = {} if record.get("referring") else self._treatment_of(record).prompt_names
            return rename(record["categories"], prompt_names) if prompt_names else record["categories"]
        dataset = record.get("dataset_name", self.default_dataset)
        if dataset not in self.class_names:
            names = MetadataCatalog.get(dataset).get("thing_classes", None) if dataset else None
            if names is None:
                raise ValueError(
                    f"{record.get('file_name')} has neither categories nor a caption, and the class names of its "
                    f"data set {dataset!r} are unknown; load it through grounding_dino.data.build"
                )
            self.class_names[dataset] = rename(names, self._treatment_of(record).prompt_names, dataset)
        return self.class_names[dataset]

    def _draw_names(self, record: Record, instances: Instances) -> tuple[list[str], list[int]]:
        """All names, and the indices of those that the prompt lists; `places` is taken off the instances."""
        sampler = self._sampler_of(record)
        names = list(self._names(record))
        places = instances.places.tolist()
        instances.remove("places")
        if record.get("referring"):
            present = sorted(set(instances.gt_classes.tolist()))
            objects = referred([record["annotations"][place] for place in places])
            drawn = sampler.sample_expressions([names[i] for i in present], [objects[i] for i in present])
            return names, [present[index] for index in drawn]
        wording = sampler.word(names)
        instances.gt_classes = _one_class_a_name(instances.gt_classes, wording)
        return wording, sampler.sample_categories(names, set(instances.gt_classes.tolist()), wording)


def _treatment(cfg: CfgNode, settings: TextSettings, is_train: bool) -> Treatment:
    if not is_train:
        plain = utils.build_augmentation(cfg, is_train)
        return Treatment(plain, plain, prompt_names=settings.prompt_names)
    policies = build_training_augmentations(cfg, settings.flip)
    return Treatment(policies.class_names, policies.own_text, settings.sampler, settings.prompt_names)


def _one_class_a_name(classes: Tensor, names: Sequence[str]) -> Tensor:
    """`classes` with those of equal names made one: in a prompt they would be the same words with different answers."""
    first: dict[str, int] = {}
    merged = {index: first.setdefault(normalised_name(names[index]), index) for index in sorted(set(classes.tolist()))}
    return torch.tensor([merged[index] for index in classes.tolist()], dtype=torch.int64)


def _renumbered(instances: Instances, chosen: Sequence[int], num_names: int) -> Instances:
    """Instances of the chosen names only, their classes counted in the order of the prompt."""
    new_index = torch.full((num_names,), -1, dtype=torch.int64)
    new_index[torch.as_tensor(chosen, dtype=torch.int64)] = torch.arange(len(chosen))
    classes = new_index[instances.gt_classes]
    instances = instances[classes >= 0]
    instances.gt_classes = classes[classes >= 0]
    return instances
