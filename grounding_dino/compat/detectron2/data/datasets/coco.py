"""COCO's json format: reading it, writing it, and registering data sets that are stored in it."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import pycocotools.mask as mask_util
from fvcore.common.timer import Timer
from iopath.common.file_io import file_lock

from detectron2.structures import BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

SLOW_LOADING_SECONDS = 1
MIN_POLYGON_NUMBERS = 6  # three points
# LVIS and its like put pictures of one COCO split into another; a few ids repeat in older releases of theirs.
_IDS_MAY_REPEAT = "minival"


def _load_coco_api(json_file: str) -> Any:
    from pycocotools.coco import COCO

    timer = Timer()
    local_file = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO(local_file)
    if timer.seconds() > SLOW_LOADING_SECONDS:
        logger.info("loading %s took %.2f seconds", local_file, timer.seconds())
    return coco


def _set_metadata_from_categories(coco: Any, dataset_name: str) -> dict[int, int]:
    """Class names in the order of their ids; returns id -> index without gaps."""
    ids = sorted(coco.getCatIds())
    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = [category["name"] for category in coco.loadCats(ids)]
    contiguous = {category_id: index for index, category_id in enumerate(ids)}
    if ids and not (min(ids) == 1 and max(ids) == len(ids)) and "coco" not in dataset_name:
        logger.warning(
            "category ids of %s are not 1..%d; they are mapped to 0..%d in their order",
            dataset_name,
            len(ids),
            len(ids) - 1,
        )
    metadata.thing_dataset_id_to_contiguous_id = contiguous
    return contiguous


def _usable_segmentation(segmentation: Any) -> Any:
    """Polygons or compressed RLE, as the mappers take them; None where nothing is left to use."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    polygons = [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= MIN_POLYGON_NUMBERS]
    return polygons or None


def _convert_annotation(
    annotation: dict[str, Any], keys: Sequence[str], id_map: dict[int, int] | None
) -> dict[str, Any] | None:
    """One annotation in the format of a data set's records; None where its segmentation is unusable."""
    obj = {key: annotation[key] for key in keys if key in annotation}
    if "bbox" in obj and len(obj["bbox"]) == 0:
        raise ValueError(f"annotation {annotation.get('id')} has an empty 'bbox': correct the json file.")
    segmentation = annotation.get("segmentation")
    if segmentation:
        obj["segmentation"] = _usable_segmentation(segmentation)
        if obj["segmentation"] is None:
            return None
    obj["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map is not None:
        category_id = obj["category_id"]
        if category_id not in id_map:
            raise KeyError(
                f"annotation {annotation.get('id')} has category_id {category_id}, which is not among the categories "
                "of the json file."
            )
        obj["category_id"] = id_map[category_id]
    return obj


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a json file in COCO's instance format.

    Args:
        json_file: path or address of the annotations.
        image_root: folder that the `file_name`s are relative to.
        dataset_name: set `thing_classes` and `thing_dataset_id_to_contiguous_id` of this data set's metadata, and map
            category ids to indices without gaps. None leaves the ids as they are.
        extra_annotation_keys: keys of annotations to keep, besides iscrowd, bbox, category_id and segmentation.

    Returns:
        one dict a picture (file_name, height, width, image_id, annotations), in the order of their ids.

    Raises:
        ValueError: annotation ids repeat, or an annotation's box is empty.
    """
    coco = _load_coco_api(json_file)
    id_map = None if dataset_name is None else _set_metadata_from_categories(coco, dataset_name)
    image_ids = sorted(coco.imgs.keys())
    if _IDS_MAY_REPEAT not in json_file:
        annotation_ids = [ann["id"] for image_id in image_ids for ann in coco.imgToAnns[image_id]]
        if len(set(annotation_ids)) != len(annotation_ids):
            raise ValueError(f"annotation ids in {json_file} are not unique: number them anew.")
    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    records = []
    dropped = 0
    for image_id in image_ids:
        image = coco.imgs[image_id]
        objects = [_convert_annotation(ann, keys, id_map) for ann in coco.imgToAnns[image_id]]
        usable = [obj for obj in objects if obj is not None]
        dropped += len(objects) - len(usable)
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": usable,
            }
        )
    logger.info("read %d pictures in COCO format from %s", len(records), json_file)
    if dropped:
        logger.warning("left out %d annotations of %s whose polygons have no three points", dropped, json_file)
    return records


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict[str, Any]]:
    """Pair pictures and label maps that lie in two folder trees under the same names.

    Returns:
        one dict a picture (file_name, sem_seg_file_name), in the order of their names.

    Raises:
        ValueError: there is no label map.
    """

    def files_with(root: str, extension: str) -> dict[str, str]:
        found = {}
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(extension):
                    path = os.path.join(folder, name)
                    found[os.path.relpath(path, root)[: -len(extension)]] = path
        return found

    labels = files_with(PathManager.get_local_path(gt_root), gt_ext)
    pictures = files_with(PathManager.get_local_path(image_root), image_ext)
    if not labels:
        raise ValueError(f"no label map (*.{gt_ext}) in {gt_root}.")
    if len(labels) != len(pictures):
        logger.warning("%s has %d pictures and %s %d label maps", image_root, len(pictures), gt_root, len(labels))
    return [
        {"file_name": pictures[name], "sem_seg_file_name": labels[name]}
        for name in sorted(labels.keys() & pictures.keys())
    ]


def _annotation_to_coco(annotation: dict[str, Any], category_of: Any) -> dict[str, Any]:
    """One annotation of a record as COCO writes it, without ids."""
    x, y, width, height = (
        float(v) for v in BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
    )
    coco: dict[str, Any] = {}
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        area = width * height
    elif isinstance(segmentation, list):
        area = float(PolygonMasks([segmentation]).area()[0].item())
        coco["segmentation"] = segmentation
    elif isinstance(segmentation, dict):
        area = float(mask_util.area(segmentation))
        counts = segmentation["counts"]
        coco["segmentation"] = {
            **segmentation,
            "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
        }
    else:
        raise TypeError(f"a segmentation is polygons or RLE, but this one is a {type(segmentation).__name__}.")
    coco.update(
        bbox=[round(v, 3) for v in (x, y, width, height)],
        area=area,
        iscrowd=int(annotation.get("iscrowd", 0)),
        category_id=int(category_of(annotation["category_id"])),
    )
    return coco


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered data set as COCO's json would hold it, with its original category ids where they are known."""
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    id_map = getattr(metadata, "thing_dataset_id_to_contiguous_id", None)
    original = {index: category_id for category_id, index in id_map.items()} if id_map is not None else None

    def category_of(index: int) -> int:
        return index if original is None else original[index]

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for position, record in enumerate(records):
        image_id = record.get("image_id", position)
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for annotation in record.get("annotations", []):
            coco = _annotation_to_coco(annotation, category_of)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **coco})
    return {
        "info": {"date_created": str(datetime.datetime.now()), "description": f"{dataset_name} in COCO format"},
        "images": images,
        "categories": [{"id": category_of(i), "name": name} for i, name in enumerate(metadata.thing_classes)],
        "licenses": None,
        "annotations": annotations,
    }


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write a registered data set as a COCO json file.

    Args:
        allow_cached: keep a file that is already there.
    """
    PathManager.mkdirs(os.path.dirname(output_file) or ".")
    with file_lock(output_file):
        if PathManager.exists(output_file) and allow_cached:
            logger.warning(
                "using %s, which is already there: remove it if %r has changed since", output_file, dataset_name
            )
            return
        logger.info("writing %r in COCO format to %s", dataset_name, output_file)
        coco_dict = convert_to_coco_dict(dataset_name)
        temporary = output_file + ".tmp"
        with PathManager.open(temporary, "w") as file:
            json.dump(coco_dict, file)
        os.replace(temporary, output_file)  # so that a reader never sees half a file


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Make a data set in COCO's instance format known as `name`, evaluated as COCO.

    Raises:
        TypeError: an argument is of the wrong type.
    """
    if not isinstance(name, str):
        raise TypeError(f"a data set's name is a string, but got {name!r}.")
    for path in (json_file, image_root):
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"data set {name!r} needs paths for its json file and its pictures, but got {path!r}.")
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
