"""A copy of the checkout in which commands of the documents run in seconds, on stand-ins for what they name.

Configurations of published models are made tiny, and random weights lie where their files would: below the cache, as
for a machine without a network, and under the names that the documents use. Data sets have a few drawn pictures.
`python sandbox.py FOLDER` fills the folder; it is run with the copy itself on Python's path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COPIED = "grounding_dino", "configs", "demo", "tools", "docs", "tests/examples", "tests/documents"
FILES = "train_net.py", "pyproject.toml", "tests/conftest.py", "README.md"
# Published models that commands may use -> the names of their files in the documents.
PUBLISHED = {
    "swin_t_ogc": [
        "groundingdino_swint_ogc.pth",
        "weights/groundingdino_swint_ogc.pth",
        "groundingdino_swint_ogc_mmdet-822d7e9d.pth",
    ],
    "swin_t_finetune_coco": [],
    "mm_swin_t": [],
    "glip_t": ["glip_tiny_mmdet-c24ce662.pth"],
    "glip_l": ["glip_large_model.pth"],
    "glip_t_finetune_coco": [],
    "glip_prompt_tuning": [],
    "glip_linear_probe": [],
    "dino/r50_4scale_12ep": ["checkpoint0011_4scale.pth"],
    "r50_4scale_finetune": [],
    "mask_dino/coco/r50_instance": [],
    "mask_dino/coco/r50_panoptic": ["maskdino_r50_panoptic.pth"],
}
# Own checkpoints that pages go on from: copies of the shipped model.
CHECKPOINTS = ["output/cells/model_final.pth", "output/cells/model_best.pth", "output/cards/model_best.pth"]
DATA_FOLDERS = ["cells", "cards", "."]  # with train.json, val.json and images
PICTURES = [
    "street.jpg",
    "photo.jpg",
    "picture.jpg",
    "a.jpg",
    "photos/one.jpg",
    "photos/two.jpg",
    "photos/sub/three.png",
]
COLOURS = [(200, 30, 30), (30, 90, 220), (30, 160, 60)]
SIDE = 96  # pixels


def make_sandbox(root: Path, folder: Path) -> dict[str, str]:
    """Copy the checkout at `root` into `folder` and fill it; returns the environment to run commands in."""
    for name in COPIED:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "datasets").mkdir()
    for name in (*FILES, *(f"datasets/{file.name}" for file in (root / "datasets").glob("prepare_*.py"))):
        shutil.copy2(root / name, folder / name)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "tests"), *filter(None, sys.path)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DETECTRON2_DATASETS": str(folder / "datasets"),
        "GROUNDING_DINO_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    kernels = Path(os.environ.get("GROUNDING_DINO_CACHE") or "~/.cache/grounding_dino").expanduser() / "kernels"
    (folder / "cache").mkdir()
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "kernels").symlink_to(kernels)  # built once
    subprocess.run([sys.executable, str(Path(__file__)), str(folder)], env=environment, check=True, cwd=folder)
    return environment


def draw_set(folder: Path, names: Sequence[str], files: Sequence[str], start: int = 0, ids: Sequence[int] = ()) -> dict:
    """Pictures with a coloured rectangle of each of three classes, and their COCO annotations, with polygons."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or range(1, len(names) + 1)
    content: dict[str, Any] = {"categories": [{"id": i, "name": name} for i, name in zip(ids, names)]}
    content.update(images=[], annotations=[])
    for number, file in enumerate(files, start):
        picture = np.full((SIDE, SIDE + 16, 3), 235, dtype=np.uint8)
        content["images"].append({"id": number, "file_name": file, "height": SIDE, "width": SIDE + 16})
        for place, colour in enumerate(COLOURS):
            x, y = 4 + 34 * place, 6 + (17 * number + 23 * place) % 50
            picture[y : y + 24, x : x + 28] = colour
            polygon = [x, y, x + 28, y, x + 28, y + 24, x, y + 24]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": list(ids)[place % len(names)],
                    "bbox": [x, y, 28, 24],
                    "area": 28 * 24,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / file)
    return content


def draw_berries(folder: Path) -> None:
    """The table and pictures that tests/examples/csv_data_set.py reads."""
    names = ["ripe berry", "green berry"]
    content = draw_set(folder / "images", names, ["one.jpg", "two.jpg"])
    files = {image["id"]: image["file_name"] for image in content["images"]}
    rows = ["file,name,x0,y0,x1,y1"]
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        name = names[annotation["category_id"] - 1]
        rows.append(f"{files[annotation['image_id']]},{name},{x},{y},{x + width},{y + height}")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _fill(folder: Path) -> None:
    _data(folder)
    _pictures(folder)
    _published_models(folder)
    _own_checkpoints(folder)


def _data(folder: Path) -> None:
    import grounding_dino  # noqa: F401

    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    names = ["red card", "blue card", "green card"]
    for name in DATA_FOLDERS:
        for split, count, start in (("train", 6, 1), ("val", 3, 101)):
            content = draw_set(folder / name / "images", names, [f"{split}{i}.jpg" for i in range(count)], start)
            (folder / name / f"{split}.json").write_text(json.dumps(content))
    draw_berries(folder / "datasets" / "berries")
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    coco = folder / "datasets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        pictures = [f"{i:012}.jpg" for i in range(3)]
        ids = [category["id"] for category in things]
        content = draw_set(coco / f"{split}2017", [c["name"] for c in things], pictures, 1, ids)
        (coco / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    command = "datasets/prepare_shapes.py --num-train 12 --num-val 4 --num-unseen 4 --size 96 --workers 1 --quiet"
    subprocess.run([sys.executable, *command.split()], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _pictures(folder: Path) -> None:
    import cv2
    import numpy as np
    from PIL import Image

    star = Image.open(folder / "demo" / "pictures" / "stars.jpg").convert("RGB").resize((160, 120))
    for name in PICTURES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        star.save(folder / name)
    writer = cv2.VideoWriter(str(folder / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (160, 120))
    for shift in range(4):
        writer.write(np.roll(np.asarray(star)[:, :, ::-1], 6 * shift, axis=1).copy())
    writer.release()


def _published_models(folder: Path) -> None:
    """Tiny models in the place of published ones: their configurations, and random weights of them."""
    from grounding_dino.checkpoint.download import cached_path
    from grounding_dino.model_zoo import build_model, get_config_file, load_cfg

    import torch

    made = {}
    for name in PUBLISHED:  # all of them first: they inherit from each other
        file = Path(get_config_file(name))
        assert file.is_relative_to(folder), f"{file} would be changed outside of the sandbox"
        made[name] = file, load_cfg(name, _tiny_options(name))
    for name, (file, cfg) in made.items():
        places = [folder / place for place in PUBLISHED[name]]
        if cfg.MODEL.RELEASE.URL:
            places.append(cached_path(cfg.MODEL.RELEASE.URL))
        if cfg.MODEL.WEIGHTS:
            cfg.MODEL.WEIGHTS = str(folder / "cache" / f"start of {file.stem}.pth")
            places.append(Path(cfg.MODEL.WEIGHTS))
        file.write_text(cfg.dump())
        if not places:
            continue
        torch.manual_seed(0)
        state = {"model": build_model(load_cfg(cfg, ["MODEL.WEIGHTS", ""])).state_dict()}
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, place)


def _tiny_options(name: str) -> list[Any]:
    """`KEY, VALUE, ...` that make a published model tiny, and leave what it is for as it is."""
    from conftest import TINY_GLIP_OPTS, TINY_MASK_OPTS, TINY_OPTS

    is_glip, has_masks = "glip" in name, name.startswith("mask_dino")
    opts = TINY_GLIP_OPTS if is_glip else TINY_MASK_OPTS if has_masks else TINY_OPTS
    kept = (
        "MODEL.DEVICE",
        "MODEL.RELEASE.",
        "MODEL.WEIGHTS",
        "DATASETS.",
        "MODEL.CLASS_HEAD.",
        "MODEL.DENOISING.NUM_LABELS",
        "TEST.",
    )
    pairs = [item for pair in zip(opts[::2], opts[1::2]) if not pair[0].startswith(kept) for item in pair]
    small = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, "INPUT.MIN_SIZE_TRAIN", (64,)]
    small += ["INPUT.MAX_SIZE_TRAIN", 96, "MODEL.BACKBONE.WEIGHTS", "", "MODEL.TEXT_ENCODER.WEIGHTS", ""]
    if has_masks or name.startswith(("dino", "r50")):  # so that Mask DINO can start from DINO
        small += ["MODEL.SWIN.DEPTHS", [1, 1, 1, 1], "MODEL.SWIN.OUT_FEATURES", [f"stage{i}" for i in (1, 2, 3, 4)]]
    if not is_glip and not has_masks:
        small += ["MODEL.PIXEL_DECODER.FFN_DIM", 64]  # text layers of half the width, as transformers' layout has it
        small += ["MODEL.PIXEL_DECODER.IN_FEATURES", ["stage2", "stage3", "stage4"]]
    return [*pairs, *small]


def _own_checkpoints(folder: Path) -> None:
    """What the fine-tuning and the calibration of GETTING_STARTED.md leave, for pages that go on from it."""
    from grounding_dino.model_zoo import load_cfg
    from grounding_dino.thresholds import CategoryThresholds

    import torch
    from safetensors.torch import load_file

    (folder / "output" / "cards").mkdir(parents=True)
    (folder / "output" / "cards" / "config.yaml").write_text(load_cfg("shapes_tiny_finetune").dump())
    CategoryThresholds().save(folder / "output" / "thresholds.json")
    state = {"model": load_file(folder / "grounding_dino" / "assets" / "shapes_tiny.safetensors")}
    for name in CHECKPOINTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / name)


if __name__ == "__main__":
    _fill(Path(sys.argv[1]).resolve())
