"""A data set as a predictor's user meets it: pictures, names, and the objects that should be found."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grounding_dino.data.build import load_records
from grounding_dino.data.datasets.groups import expand_groups
from grounding_dino.data.record_sets import annotations_of
from grounding_dino.data.text_settings import rename, settings_by_dataset
from grounding_dino.evaluation.calibration import LEAST_SCORE
from grounding_dino.pictures import decode_picture, read_picture
from grounding_dino.predictor import GroundingPredictor
from grounding_dino.text.names import normalised_name

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from tqdm import tqdm


@dataclass(frozen=True)
class Found:
    """What a predictor finds in labelled pictures.

    Attributes:
        truth: the pictures that could be read, and their objects.
        results: detections from :data:`LEAST_SCORE` on, in COCO's results format.
        failures: pictures that could not be read, with the reasons.
    """

    truth: COCO
    results: Sequence[dict[str, Any]]
    failures: Sequence[tuple[str, str]]


class LabelledPictures:
    """The pictures of one data set, all labelled with the same categories."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        """
        Args:
            cfg: for DATASETS.TEXT, by which names are asked for.
            name: of a registered data set.

        Raises:
            FileNotFoundError, ValueError: it cannot be loaded, or its pictures are not labelled so.
        """
        self.name = name
        if expand_groups([name]) != [name]:
            raise ValueError(f"{name!r} is a group of data sets; give one of {', '.join(expand_groups([name]))}")
        self.records = load_records([name])
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") == "lvis":
            raise ValueError(
                f"the pictures of {name!r} are labelled with some of its categories (LVIS): a detection of another "
                "may be right; give a set that is labelled with all of its categories"
            )
        classes = metadata.get("thing_classes", None)
        if not classes or any("caption" in record or "categories" in record for record in self.records):
            raise ValueError(
                f"the pictures of {name!r} have texts of their own, and no categories in common; give a set of "
                "pictures with categories, such as a COCO json"
            )
        settings = settings_by_dataset(cfg).get(name)
        self.names: list[str] = rename(classes, settings.prompt_names if settings else {}, name if settings else "")
        first: dict[str, str] = {}
        for each in self.names:
            if normalised_name(each) in first:
                raise ValueError(
                    f"{name!r} has the categories {first[normalised_name(each)]!r} and {each!r}, which are one name "
                    "to the model; make one category of them, or rename one"
                )
            first[normalised_name(each)] = each

    def detect(self, predictor: GroundingPredictor, batch_size: int = 1) -> Found:
        """What the predictor finds in a call with these names; pictures that fail are left out, with their objects.

        Raises:
            ValueError: a model of fixed classes that does not know one of the names.
        """
        prompt = self._prompt(predictor)
        numbers = {normalised_name(name): number for number, name in reversed(list(enumerate(self.names, 1)))}
        images: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        failures: list[tuple[str, str]] = []
        options = {**prompt, "box_threshold": LEAST_SCORE}
        with tqdm(total=len(self.records), unit="picture") as bar:
            for first in range(0, len(self.records), batch_size):
                places = range(first, min(first + batch_size, len(self.records)))
                for place, found in self._answers(predictor, places, options, failures):
                    images.append({"id": place + 1, "height": found.image_size[0], "width": found.image_size[1]})
                    results += [{**each, "image_id": place + 1} for each in _as_results(found, numbers)]
                bar.update(len(places))
        return Found(self._truth(images), results, failures)

    def _prompt(self, predictor: GroundingPredictor) -> dict[str, Any]:
        if predictor.classes is None:
            prompt = {"categories": self.names}
            predictor.check_prompt(**prompt)
            return prompt
        known = set(map(normalised_name, predictor.classes))
        unknown = [name for name in self.names if normalised_name(name) not in known]
        if unknown:
            raise ValueError(
                f"the model finds {len(predictor.classes)} fixed classes; {len(unknown)} names of {self.name!r} are "
                f"none of them, such as {unknown[0]!r}; give a model that was trained on these categories"
            )
        return {}

    def _answers(
        self, predictor: GroundingPredictor, places: Sequence[int], options: dict[str, Any], failures: list[Any]
    ) -> list[tuple[int, Any]]:
        """Places and instances of those pictures that can be read."""
        read = []
        for place in places:
            try:
                read.append((place, predictor.prepare(_picture(self.records[place]))))
            except (OSError, ValueError, TypeError) as error:
                failures.append((str(self.records[place]["file_name"]), str(error)))
        answers = predictor.detect([picture for _, picture in read], **options)
        found = [answer["instances"] if isinstance(answer, dict) else answer for answer in answers]
        return [(place, instances) for (place, _), instances in zip(read, found)]

    def _truth(self, images: list[dict[str, Any]]) -> COCO:
        annotations: list[dict[str, Any]] = []
        for image in images:
            for item in annotations_of(self.records[image["id"] - 1]):
                box = BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYWH_ABS)
                facts = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": item["category_id"] + 1}
                area = float(box[2] * box[3])
                annotations.append({**facts, "bbox": box, "area": area, "iscrowd": int(item.get("iscrowd", 0))})
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names, 1)]
        truth = COCO()
        truth.dataset = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth.createIndex()
        return truth


def _as_results(found: Any, numbers: dict[str, int]) -> list[dict[str, Any]]:
    """Detections of known names without their picture; a model of fixed classes may find others."""
    results = []
    for box, score, label in zip(found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.labels):
        number = numbers.get(normalised_name(label))
        if number is not None:
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"category_id": number, "bbox": sides, "score": score})
    return results


def _picture(record: dict[str, Any]) -> Any:
    """As the predictor reads it, RGB."""
    if "image_bytes" in record:
        return decode_picture(record["image_bytes"], str(record["file_name"]))
    return read_picture(record["file_name"])
