"""Writes the shapes data set: pictures, COCO annotations with masks, referring expressions, and segments.

    python datasets/prepare_shapes.py [--output datasets/shapes]

Every picture has a random stream of its own, (seed, split, number), so the files do not depend on how many
processes write them, and a larger split begins with the pictures of a smaller one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from grounding_dino.data.prepare.files import write_json
from grounding_dino.data.shapes.expressions import refer
from grounding_dino.data.shapes.painter import draw_background
from grounding_dino.data.shapes.scene import Scene, render_scene
from grounding_dino.data.shapes.segments import SegmentFolders, SegmentJob, write_segments
from grounding_dino.data.shapes.vocabulary import HELD_OUT_PAIRS, STUFF_IDS, TRAIN_PAIRS, category_ids, pair_name

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

logger = logging.getLogger(__name__)

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

RENDERER_VERSION = 1  # raise it when the same seed gives other pictures
SPLITS: dict[str, tuple[tuple[str, str], ...]] = {"train": TRAIN_PAIRS, "val": TRAIN_PAIRS, "unseen": HELD_OUT_PAIRS}
FOLDER = "shapes"
SEGMENT_SPLITS = ("train", "val")  # those with panoptic and semantic annotations
EXPRESSIONS_PER_PICTURE = 6
JPEG_QUALITY = 92


@dataclass(frozen=True)
class SplitRecipe:
    """Everything that the files of a split follow from; stored in their `info`."""

    split: str
    pictures: int
    size: int
    seed: int
    renderer_version: int = RENDERER_VERSION

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; choose from {sorted(SPLITS)}")
        if self.pictures < 0:
            raise ValueError(f"the number of pictures of {self.split} is {self.pictures}; it cannot be negative")

    def random_stream(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, list(SPLITS).index(self.split), number])

    def render(self, number: int) -> tuple[Scene, list[dict[str, Any]]]:
        """Picture `number` of the split and its expressions as dicts of `caption` and `index` (of the object)."""
        rng = self.random_stream(number)
        scene = render_scene(SPLITS[self.split], self.size, rng)
        return scene, [asdict(expression) for expression in refer(scene, EXPRESSIONS_PER_PICTURE, rng)]


@dataclass(frozen=True)
class _PictureRecord:
    """The annotations of one picture, ids still relative to it."""

    number: int
    file_name: str
    objects: list[dict[str, Any]]
    expressions: list[dict[str, Any]]


def _annotate(scene: Scene, ids: dict[str, int]) -> list[dict[str, Any]]:
    annotations = []
    for item in scene.objects:
        encoded = coco_mask.encode(np.asfortranarray(item.mask.astype(np.uint8)))
        annotations.append(
            {
                "category_id": ids[pair_name(item.pair)],
                "bbox": list(item.box),
                "area": int(item.mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode()},
            }
        )
    return annotations


def _write_picture(job: tuple[SplitRecipe, int, str]) -> _PictureRecord:
    recipe, number, folder = job
    cv2.setNumThreads(0)
    scene, expressions = recipe.render(number)
    file_name = f"{number:06d}.jpg"
    encoded, data = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode picture {file_name} of {recipe.split} as JPEG")
    Path(folder, file_name).write_bytes(data.tobytes())
    return _PictureRecord(number, file_name, _annotate(scene, category_ids(SPLITS[recipe.split])), expressions)


def _merge(recipe: SplitRecipe, records: Iterable[_PictureRecord]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The COCO annotations and the referring expressions of a split; ids count from 1 in picture order."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    expressions: list[dict[str, Any]] = []
    for record in records:
        image_id = record.number + 1
        images.append({"id": image_id, "file_name": record.file_name, "height": recipe.size, "width": recipe.size})
        first = len(annotations) + 1
        for offset, annotation in enumerate(record.objects):
            annotations.append({"id": first + offset, "image_id": image_id, **annotation})
        for expression in record.expressions:
            target = annotations[first - 1 + expression["index"]]
            expressions.append(
                {
                    "id": len(expressions) + 1,
                    "image_id": image_id,
                    "ann_id": target["id"],
                    "caption": expression["caption"],
                    "bbox": target["bbox"],
                }
            )
    info = asdict(recipe)
    categories = [{"id": index, "name": name} for name, index in category_ids(SPLITS[recipe.split]).items()]
    detection = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    return detection, {"info": info, "images": images, "expressions": expressions}


def _follows_from(recipe: SplitRecipe, path: Path) -> bool:
    """Whether a json file is there, whole, and was made from this very recipe."""
    try:
        with open(path, encoding="utf-8") as file:
            return bool(json.load(file)["info"] == asdict(recipe))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prepare_split(recipe: SplitRecipe, output: Path, workers: int = 1, progress: bool = True) -> bool:
    """Write one split below `output`; False where it was there already, from the same recipe.

    Writes `<split>/*.jpg`, `annotations/<split>.json` (COCO with masks) and `annotations/<split>_refexp.json`.
    """
    expressions_file = output / "annotations" / f"{recipe.split}_refexp.json"  # written last
    if _follows_from(recipe, expressions_file):
        logger.info("%s is complete in %s", recipe.split, output)
        return False
    folder = output / recipe.split
    folder.mkdir(parents=True, exist_ok=True)
    (output / "annotations").mkdir(exist_ok=True)
    # Were an earlier recipe's file to stay, an interrupted run would leave mixed pictures that look complete.
    expressions_file.unlink(missing_ok=True)
    jobs = [(recipe, number, str(folder)) for number in range(recipe.pictures)]
    records = _map(_write_picture, jobs, workers, recipe.split if progress else "")
    detection, expressions = _merge(recipe, records)
    write_json(output / "annotations" / f"{recipe.split}.json", detection)
    write_json(expressions_file, expressions)
    return True


def prepare_segments(recipe: SplitRecipe, output: Path, workers: int = 1, progress: bool = True) -> bool:
    """Write the panoptic and semantic annotations of a prepared split; False where they were there already.

    They follow from the recipe and from the masks in `annotations/<split>.json`; pictures are not drawn again. Writes
    `<split>_panoptic/*.png`, `<split>_sem_seg/*.png` and `annotations/<split>_panoptic.json`, the last.
    """
    panoptic_file = output / "annotations" / f"{recipe.split}_panoptic.json"
    if _follows_from(recipe, panoptic_file):
        logger.info("the segments of %s are complete in %s", recipe.split, output)
        return False
    panoptic_file.unlink(missing_ok=True)
    with open(output / "annotations" / f"{recipe.split}.json", encoding="utf-8") as file:
        detection = json.load(file)
    folders = SegmentFolders(*(str(output / f"{recipe.split}_{kind}") for kind in SegmentFolders._fields))
    for folder in folders:
        Path(folder).mkdir(exist_ok=True)
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in detection["images"]}
    for annotation in detection["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    jobs = [
        SegmentJob(image, objects[image["id"]], draw_background(recipe.random_stream(number))[0], folders)
        for number, image in enumerate(detection["images"])
    ]
    annotations = _map(write_segments, jobs, workers, f"segments of {recipe.split}" if progress else "")
    things = [{**category, "isthing": 1} for category in detection["categories"]]
    categories = [*things, *({"id": index, "name": name, "isthing": 0} for name, index in STUFF_IDS.items())]
    content = {"info": asdict(recipe), "images": detection["images"], "annotations": annotations}
    write_json(panoptic_file, {**content, "categories": categories})
    return True


def _map(work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, title: str) -> list[_Result]:
    """The results of all jobs in order, from several processes, with a progress bar where it has a title."""
    results = []
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(jobs), desc=title, unit="picture", disable=not title))
        if workers > 1:
            found = stack.enter_context(ProcessPoolExecutor(workers)).map(work, jobs, chunksize=32)
        else:
            found = map(work, jobs)
        for result in found:
            results.append(result)
            bar.update()
    return results


def default_output() -> Path:
    """`FOLDER` below `dataset_root()`."""
    from grounding_dino.data.datasets.paths import dataset_root  # on use: its package registers this data set

    return dataset_root() / FOLDER


def get_parser() -> argparse.ArgumentParser:
    """The command line of `datasets/prepare_shapes.py`."""
    parser = argparse.ArgumentParser(
        description="Render the shapes data set: pictures, boxes, masks, expressions and segments."
    )
    parser.add_argument("--output", type=Path, help="default: $DETECTRON2_DATASETS/shapes, else datasets/shapes")
    parser.add_argument("--num-train", type=int, default=24000)
    parser.add_argument("--num-val", type=int, default=500)
    parser.add_argument("--num-unseen", type=int, default=500)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `datasets/prepare_shapes.py`."""
    parser = get_parser()
    options = parser.parse_args(arguments)
    output = options.output or default_output()
    try:
        recipes = [SplitRecipe(split, getattr(options, f"num_{split}"), options.size, options.seed) for split in SPLITS]
        for recipe in recipes:
            prepare_split(recipe, output, options.workers, progress=not options.quiet)
            if recipe.split in SEGMENT_SPLITS:
                prepare_segments(recipe, output, options.workers, progress=not options.quiet)
    except ValueError as error:
        parser.error(str(error))
    print(f"shapes is ready in {output}")
