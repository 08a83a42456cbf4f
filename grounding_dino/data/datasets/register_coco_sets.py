"""Detection sets that come as COCO json: COCO 2017 itself, Objects365, OpenImages and V3Det.

The files are looked up below `dataset_root()` when a set is used; datasets/README.md shows the folders.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from grounding_dino.data.datasets.coco_json import load_coco, set_metadata
from grounding_dino.data.datasets.label_names import NAME_FIXES, renamed
from grounding_dino.data.datasets.paths import dataset_root, require

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

Record = dict[str, Any]

COCO_HINT = (
    "download the pictures and annotations of 2017 from https://cocodataset.org/#download and run "
    "`python datasets/prepare_coco.py`, which unpacks and checks them"
)
NOREFVAL_HINT = "`python datasets/prepare_coco.py --without-refexp` makes it"
OBJECTS365_HINT = (
    "download Objects365 from https://www.objects365.org and run `python datasets/prepare_objects365.py`, which "
    "unpacks and checks it"
)
OPENIMAGES_HINT = (
    "download pictures and box annotations from https://storage.googleapis.com/openimages/web/download_v6.html and "
    "run `python datasets/prepare_openimages.py`, which makes the json"
)
V3DET_HINT = "download it as https://v3det.openxlab.org.cn describes, then `python datasets/prepare_v3det.py` checks it"

# Listed in the annotations of Objects365 v2, but in none of its archives.
OBJECTS365_V2_ABSENT = {
    "patch6/objects365_v1_00320532.jpg",
    "patch6/objects365_v1_00320534.jpg",
    "patch16/objects365_v2_00908726.jpg",
}


@dataclass(frozen=True)
class CocoSet:
    """A data set in a COCO json below `dataset_root()`.

    Attributes:
        json_files: paths of the annotations, of which the first that is there is read.
        image_root: the folder that the pictures' `file_name` is relative to.
        hint: where the files come from, as `paths.require` takes it.
        fixes: corrected class names, a table of `label_names.NAME_FIXES`.
        adapt: changes the content, but for names of categories, before it is checked.
        image_keys: further keys of pictures that records keep.
    """

    name: str
    json_files: tuple[str, ...]
    image_root: str
    hint: str
    fixes: Mapping[str, str] = field(default_factory=dict)
    adapt: Callable[[Record], Record] | None = None
    image_keys: tuple[str, ...] = ()
    evaluator_type: str = "coco"


def register_coco_sets() -> None:
    """Register the sets of this module; COCO 2017 only where Detectron2 has not."""
    for split in ("train", "val"):
        name = f"coco_2017_{split}"
        if name in DatasetCatalog:
            explain_missing_files(name, COCO_HINT)
        else:
            register_coco_set(_coco(name, f"instances_{split}2017", f"{split}2017", COCO_HINT))
    register_coco_set(_coco("coco_2017_train_norefval", "instances_train2017_norefval", "train2017", NOREFVAL_HINT))
    for split in ("train", "val"):
        register_coco_set(_objects365_v1(split))
        register_coco_set(_objects365_v2(split))
        register_coco_set(_openimages(split))
        register_coco_set(_v3det(split))


def register_coco_set(coco_set: CocoSet) -> None:
    """Make a set known under its name, unless the name is taken."""
    if coco_set.name not in DatasetCatalog:
        DatasetCatalog.register(coco_set.name, functools.partial(load_coco_set, coco_set))
        MetadataCatalog.get(coco_set.name).set(evaluator_type=coco_set.evaluator_type)


def load_coco_set(coco_set: CocoSet) -> list[Record]:
    """Detectron2's records of the set, read and checked by `load_coco`; scored by the file as published.

    Raises:
        FileNotFoundError: its annotations or its pictures are not there; the message says where they come from.
        CocoFormatError: the annotations cannot be used.
    """
    return load_coco(
        str(_first_file(coco_set.json_files, coco_set.hint)),
        str(require(coco_set.image_root, coco_set.hint)),
        coco_set.name,
        adapt=functools.partial(_adapt, coco_set),
        image_keys=coco_set.image_keys,
        score_copy=False,
    )


def _first_file(paths: Sequence[str], hint: str) -> os.PathLike[str]:
    for path in paths[:-1]:
        try:
            return require(path, hint)
        except FileNotFoundError:
            continue
    return require(paths[-1], hint)


def _adapt(coco_set: CocoSet, content: Record) -> Record:
    content = {**content, "categories": renamed(content["categories"], coco_set.fixes)}
    return coco_set.adapt(content) if coco_set.adapt else content


def explain_missing_files(name: str, hint: str) -> None:
    """Let a set that Detectron2 registered say where its files come from when they are absent; else it is read as is.

    Detectron2 settles the folder of data sets when it is imported; here it is looked up when the set is used.
    """
    read = DatasetCatalog[name]
    places = places_below_root(name, ("json_file", "image_root"))
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, functools.partial(_read_where_present, name, read, hint, places))


def places_below_root(name: str, keys: Sequence[str]) -> dict[str, str]:
    """Paths in a set's metadata, relative to `dataset_root()` as it is now."""
    metadata = MetadataCatalog.get(name)
    return {key: os.path.relpath(getattr(metadata, key), dataset_root()) for key in keys}


def _read_where_present(
    name: str, read: Callable[[], list[Record]], hint: str, places: Mapping[str, str]
) -> list[Record]:
    found = {key: str(require(path, hint)) for key, path in places.items()}
    metadata = MetadataCatalog.get(name)
    if all(os.path.abspath(getattr(metadata, key)) == os.path.abspath(path) for key, path in found.items()):
        return read()
    set_metadata(name, **found)
    moved = functools.partial(load_coco_json, found["json_file"], found["image_root"], name)
    DatasetCatalog[name] = functools.partial(_read_where_present, name, moved, hint, places)
    return moved()


# ------------------------------------------------------------------------------------------------ the data sets


def _coco(name: str, stem: str, folder: str, hint: str) -> CocoSet:
    return CocoSet(name, (f"coco/annotations/{stem}.json",), f"coco/{folder}", hint)


def _objects365_v1(split: str) -> CocoSet:
    return CocoSet(
        f"objects365_v1_{split}",
        (f"objects365v1/objects365_{split}.json",),
        f"objects365v1/{split}",
        OBJECTS365_HINT,
        NAME_FIXES["objects365_v1"],
    )


def _objects365_v2(split: str) -> CocoSet:
    return CocoSet(
        f"objects365_v2_{split}",
        (f"objects365v2/annotations/zhiyuan_objv2_{split}.json",),
        f"objects365v2/{split}",
        OBJECTS365_HINT,
        NAME_FIXES["objects365_v2"],
        adapt=objects365_v2_images,
    )


def _openimages(split: str) -> CocoSet:
    return CocoSet(
        f"openimages_v6_{split}",
        (f"OpenImages/annotations/openimages_v6_{split}.json",),
        f"OpenImages/{'validation' if split == 'val' else split}",
        OPENIMAGES_HINT,
        NAME_FIXES["openimages_v6"],
    )


def _v3det(split: str) -> CocoSet:
    # Its file names begin with "images/".
    return CocoSet(
        f"v3det_{split}",
        (f"V3Det/annotations/v3det_2023_v1_{split}.json",),
        "V3Det",
        V3DET_HINT,
        NAME_FIXES["v3det"],
    )


def is_objects365_v2(content: Record) -> bool:
    """Whether the pictures are named as in the json of Objects365 v2 alone, which no archive unpacks to."""
    return any(_NAME_OF_V2.match(str(image.get("file_name"))) for image in content["images"][:1])


def objects365_v2_images(content: Record) -> Record:
    """Pictures by patch and name, as the archives unpack, instead of `images/v1/patch8/...`; absent ones left out."""
    images = [_in_patch(image) for image in content["images"]]
    absent = [image["id"] for image in images if image.get("file_name") in OBJECTS365_V2_ABSENT and "id" in image]
    return {
        **content,
        "images": [image for image in images if image.get("file_name") not in OBJECTS365_V2_ABSENT],
        "annotations": [a for a in content["annotations"] if a.get("image_id") not in absent],
    }


_NAME_OF_V2 = re.compile(r"images/v[12]/patch\d+/")


def _in_patch(image: Record) -> Record:
    name = image.get("file_name")
    return {**image, "file_name": "/".join(PurePosixPath(name).parts[-2:])} if isinstance(name, str) else image
