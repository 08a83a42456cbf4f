"""D3 (Xie et al., Described Object Detection, arXiv:2307.12813): descriptions as categories, asked for by scenario.

The published `d3_json` files are COCO json whose categories are descriptions. Which descriptions a picture is asked for
is told by the scenario ("group") that it belongs to, which only the pickles of `d3_pkl` hold; :func:`convert_d3` puts
it into `d3_json/d3_groups.json`:

    {"descriptions": [{"id", "text", "absence"}], "groups": [{"id", "name", "description_ids", "image_ids"}]}
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grounding_dino.checkpoint.restricted_unpickler import load_restricted_pickle
from grounding_dino.data.datasets.coco_cleaning import CocoFormatError, check_name, is_integer
from grounding_dino.data.datasets.coco_json import load_coco, set_metadata
from grounding_dino.data.datasets.paths import require

from detectron2.data import MetadataCatalog

Record = dict[str, Any]

ROOT = Path("d3")
IMAGES, ANNOTATIONS, PICKLES = ROOT / "d3_images", ROOT / "d3_json", ROOT / "d3_pkl"
GROUPS = ANNOTATIONS / "d3_groups.json"
SOURCE = "unpack d3_images.zip, d3_json.zip and d3_pkl.zip there, which https://github.com/shikras/d-cube links to"


@dataclass(frozen=True)
class Scenarios:
    """What `d3_groups.json` says.

    `texts` holds the descriptions by id, `absence` the ids of those that speak of what is not there ("without a
    leash"), `asked` for each image id the ids of the descriptions of its scenarios.
    """

    texts: dict[int, str]
    absence: frozenset[int]
    asked: dict[int, list[int]]


def load_d3(
    json_file: str, image_root: str, groups_file: str, dataset_name: str, all_descriptions: bool = False
) -> list[Record]:
    """One record a picture, with the descriptions that it is asked for as `categories`, their ids in `description_ids`.

    The metadata of `dataset_name` gets `json_file`, which is scored against, and `absence_ids`.

    Args:
        all_descriptions: ask every picture for every description (inter-scenario); else for those of its own scenarios
            (intra-scenario, D3's default).

    Raises:
        FileNotFoundError: no such file.
        CocoFormatError: a file has another layout, or a picture belongs to no scenario.
    """
    scenarios = read_scenarios(groups_file)
    records = load_coco(json_file, image_root, dataset_name, score_copy=False)
    metadata = MetadataCatalog.get(dataset_name)
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    del metadata.thing_classes  # annotations number what their own picture is asked for
    numbers = {index: number for number, index in contiguous.items()}
    unknown = sorted(set(contiguous) - set(scenarios.texts))
    if unknown:
        raise CocoFormatError(f"category {unknown[0]} of {json_file} is no description of {groups_file}; make it anew")
    set_metadata(dataset_name, absence_ids=scenarios.absence)
    everything = sorted(scenarios.texts)
    described = []
    for record in records:
        asked = everything if all_descriptions else scenarios.asked.get(record["image_id"], [])
        if not asked:
            raise CocoFormatError(
                f"picture {record['image_id']} of {json_file} belongs to no scenario in {groups_file}, so it is not "
                "known which descriptions to ask it for; make that file anew"
            )
        places = {number: place for place, number in enumerate(asked)}
        described.append(
            {
                **record,
                "categories": [scenarios.texts[number] for number in asked],
                "referring": True,
                "description_ids": list(asked),
                "annotations": [
                    {**annotation, "category_id": places[numbers[annotation["category_id"]]]}
                    for annotation in record["annotations"]
                    if numbers[annotation["category_id"]] in places
                ],
            }
        )
    return described


def read_scenarios(groups_file: str) -> Scenarios:
    """The content of `d3_groups.json`, checked.

    Raises:
        FileNotFoundError: no such file.
        CocoFormatError: another layout.
    """
    if not Path(groups_file).is_file():
        raise FileNotFoundError(f"there is no {groups_file!r}; `python datasets/prepare_d3.py` makes it")
    try:
        content = json.loads(Path(groups_file).read_text(encoding="utf-8"))
        texts = {entry["id"]: entry["text"] for entry in content["descriptions"]}
        absence = frozenset(entry["id"] for entry in content["descriptions"] if entry["absence"])
        asked: dict[int, list[int]] = {}
        for group in content["groups"]:
            for image in group["image_ids"]:
                asked[image] = sorted({*asked.get(image, []), *group["description_ids"]})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CocoFormatError(
            f"{groups_file} is not in the form that `python datasets/prepare_d3.py` writes "
            f"({type(error).__name__}: {error}); make it anew"
        ) from error
    for number, text in texts.items():
        if not is_integer(number) or not isinstance(text, str):
            raise CocoFormatError(f"description {number!r} of {groups_file} has no numeric id or no text: {text!r}")
        check_name(text, f"description {number} of {groups_file}")
    strange = sorted({number for numbers in asked.values() for number in numbers} - set(texts))
    if strange:
        raise CocoFormatError(f"a group of {groups_file} has the description {strange[0]}, which is not listed in it")
    return Scenarios(texts, absence, asked)


def convert_d3(folder: Path) -> Record:
    """The content of `d3_groups.json` out of `sentences.pkl` and `groups.pkl`, which are read without running code.

    Raises:
        FileNotFoundError: one is absent.
        CocoFormatError: one is no pickle of D3.
    """
    sentences, groups = (_read_pickle(folder / f"{name}.pkl") for name in ("sentences", "groups"))
    try:
        return {
            "descriptions": [
                {"id": int(number), "text": str(entry["raw_sent"]), "absence": bool(entry["is_negative"])}
                for number, entry in sorted(sentences.items())
            ],
            "groups": [
                {
                    "id": int(number),
                    "name": str(entry.get("group_name", "")),
                    "description_ids": sorted(map(int, entry["inner_sent_id"])),
                    "image_ids": sorted(map(int, entry["img_id"])),
                }
                for number, entry in sorted(groups.items())
            ],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CocoFormatError(
            f"the pickles in {folder} are not laid out as D3's ({type(error).__name__}: {error}); download them again"
        ) from error


def _read_pickle(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {str(path)!r}; {SOURCE}")
    try:
        with path.open("rb") as file:
            content = load_restricted_pickle(file)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CocoFormatError(f"{path} is not readable as a pickle: {error}; download it again") from error
    if not isinstance(content, dict):
        raise CocoFormatError(f"{path} holds a {type(content).__name__}; D3's pickles hold a dict")
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    """The command of datasets/prepare_d3.py."""
    parser = argparse.ArgumentParser(description="D3's scenarios out of its pickles, into json.")
    parser.add_argument("--pickles", type=Path, help=f"default: {PICKLES} below DETECTRON2_DATASETS")
    parser.add_argument("--output", type=Path, help=f"default: {GROUPS} below DETECTRON2_DATASETS")
    options = parser.parse_args(arguments)
    content = convert_d3(options.pickles or require(PICKLES, SOURCE))
    path = options.output or require(ANNOTATIONS, SOURCE) / GROUPS.name
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    absence = sum(entry["absence"] for entry in content["descriptions"])
    print(
        f"{path}: {len(content['descriptions'])} descriptions, {absence} of them of absence, "
        f"in {len(content['groups'])} scenarios"
    )
