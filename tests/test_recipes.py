"""No recipe is dead: each is built in small and takes a step on stand-ins of its data sets, through their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grounding_dino.data.datasets  # noqa: F401  # registers the data sets
from grounding_dino.checkpoint.saving import save_checkpoint
from grounding_dino.data.class_count import with_class_count
from grounding_dino.data.datasets.groups import expand_groups
from grounding_dino.data.segmentation_maps import write_panoptic_map
from grounding_dino.engine.evaluations import check_metric_name
from grounding_dino.engine.trainer import Trainer
from grounding_dino.model_zoo import list_configs, load_cfg
from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO
from grounding_dino.modeling.meta_arch.glip import GLIP

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

RECIPES = list_configs()
USERS_OWN = {"mine_train", "mine_val"}  # named on the command line
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.EMBED_DIM": 64,
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 1, 2, 2],
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.BACKBONE.WEIGHTS": "",
    "MODEL.TIMM.PRETRAINED_ON": False,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.TEXT_ENCODER.HIDDEN_SIZE": 16,
    "MODEL.TEXT_ENCODER.NUM_LAYERS": 1,
    "MODEL.TEXT_ENCODER.NUM_HEADS": 2,
    "MODEL.TEXT_ENCODER.FFN_DIM": 16,
    "MODEL.PIXEL_DECODER.NUM_LAYERS": 1,
    "MODEL.PIXEL_DECODER.FFN_DIM": 16,
    "MODEL.PIXEL_DECODER.TEXT_FUSION.EMBED_DIM": 16,
    "MODEL.PIXEL_DECODER.TEXT_LAYER.FFN_DIM": 16,
    "MODEL.TRANSFORMER_DECODER.NUM_LAYERS": 2,
    "MODEL.TRANSFORMER_DECODER.FFN_DIM": 16,
    "MODEL.DENSE_HEAD.NUM_BLOCKS": 1,
    "MODEL.DENSE_HEAD.TEXT_FUSION.EMBED_DIM": 16,
    "MODEL.DENSE_HEAD.TEXT_FUSION.NUM_HEADS": 2,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.CROP.MIN_SIZES": [72],
    "INPUT.CROP.SIZE": [48, 64],
    "INPUT.LARGE_SCALE_JITTER.SIZE": 64,
    "INPUT.SIZE_DIVISIBILITY": 64,
    "MODEL.LOSS.NUM_POINTS": 64,
    "MODEL.QUERY_SELECTION.NUM_QUERIES": 40,
    "DATALOADER.NUM_WORKERS": 0,
}
ONE_STEP_ALONE = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1000,
    "SOLVER.IMS_PER_BATCH": 2,
    "TEST.EVAL_PERIOD": 0,
    "SOLVER.BEST_CHECKPOINT_METRIC": "",
    "SOLVER.EARLY_STOP.PATIENCE": 0,
    "TEST.RETAINED": (),
    "DATASETS.TEST": (),
}
TIMM_OPTIONS = {"convnext_xl_4scale_12ep": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}
MODELS = {"GeneralizedDINO": GeneralizedDINO, "GLIP": GLIP}
TRUNKS = ("transformer_decoder.", "tower.")  # what a training of either model changes
GROUNDING = ("goldg", "grit", "cap4m", "refcoco", "grefcoco")


def settings(**changes: Any) -> list[Any]:
    return options({**SMALL, **ONE_STEP_ALONE, **{key.replace("__", "."): value for key, value in changes.items()}})


def options(values: dict[str, Any]) -> list[Any]:
    return [item for pair in values.items() for item in pair]


def record(name: str, number: int, folder: Path) -> dict[str, Any]:
    """A picture with one box, with a caption where the data set has captions."""
    file = folder / f"{number}.png"
    if not file.is_file():
        pixels = np.random.default_rng(number).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    outline = [8.0, 8.0, 40.0, 8.0, 40.0, 36.0, 8.0, 36.0]
    box = {"bbox": [8.0, 8.0, 40.0, 36.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    common = {"file_name": str(file), "image_id": number, "height": 64, "width": 80}
    if name.startswith(GROUNDING):
        return {**common, "annotations": [box], "caption": "a cat left of a tree", "phrases": [(2, 5)]}
    if "panoptic" in name or "sem_seg" in name:
        return {**common, **maps(folder)}
    return {**common, "annotations": [{**box, "segmentation": [outline]}]}


def maps(folder: Path) -> dict[str, Any]:
    """A panoptic and a semantic map of one object on one ground."""
    panoptic, semantic = str(folder / "panoptic.map.png"), str(folder / "semantic.map.png")
    inside = np.zeros((64, 80), dtype=np.uint8)
    inside[8:36, 8:40] = 1
    write_panoptic_map(panoptic, inside.astype(np.int64) + 300)
    Image.fromarray(inside).save(semantic)
    segments = [{"id": 300 + k, "category_id": k, "iscrowd": 0, "isthing": k == 0} for k in range(2)]
    return {"pan_seg_file_name": panoptic, "sem_seg_file_name": semantic, "segments_info": segments}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Loading a registered data set gives two made-up pictures; a name that is not registered is still an error."""

    def load(name: str) -> list[dict[str, Any]]:
        assert name in DatasetCatalog or name in USERS_OWN, name
        metadata = MetadataCatalog.get(name)
        if not hasattr(metadata, "thing_classes"):
            metadata.thing_classes = ["cat"]
        return [record(name, number, tmp_path) for number in range(2)]

    monkeypatch.setattr(DatasetCatalog, "get", load)
    for name in USERS_OWN:
        DatasetCatalog.register(name, lambda: [])
    known = {name: MetadataCatalog.get(name).as_dict().copy() for name in MetadataCatalog.list()}
    yield
    for name in USERS_OWN:
        DatasetCatalog.remove(name)
    for name in MetadataCatalog.list():
        MetadataCatalog.remove(name)
        MetadataCatalog.get(name).set(**known.get(name, {}))


@pytest.mark.parametrize("name", RECIPES)
def test_data_sets_are_registered_and_mixtures_have_a_number_for_each(name: str) -> None:
    cfg = load_cfg(name)
    sets = cfg.DATASETS
    named = {*expand_groups([*sets.TRAIN, *sets.TEST, *cfg.TEST.RETAINED])} - USERS_OWN
    assert named <= set(DatasetCatalog), named - set(DatasetCatalog)
    assert len(sets.RATIOS) in (0, len(sets.TRAIN)) and len(sets.WEIGHTS) in (0, len(sets.TRAIN))
    assert set(sets.TEXT) | set(cfg.DATALOADER.REPEAT_SETS) <= set(sets.TRAIN)


@pytest.mark.parametrize("name", [name for name in RECIPES if load_cfg(name).SOLVER.BEST_CHECKPOINT_METRIC])
def test_the_best_checkpoint_goes_by_a_metric_that_there_is(name: str) -> None:
    check_metric_name(load_cfg(name, ["TEST.EVAL_PERIOD", 1]))  # some have their period in epochs


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run: dict[str, Any] = {"OUTPUT_DIR": str(tmp_path / "out"), "MODEL__WEIGHTS": ""}
    if name in TIMM_OPTIONS:
        run["MODEL__TIMM__OPTIONS"] = TIMM_OPTIONS[name]
    cfg = load_cfg(name, settings(**run))
    if load_cfg(name).MODEL.WEIGHTS:  # start from a file, in our form
        run["MODEL__WEIGHTS"] = str(tmp_path / "start.pth")
        save_checkpoint(run["MODEL__WEIGHTS"], build(with_class_count(cfg)).state_dict(), to="ours")
        cfg = load_cfg(name, settings(**run))
    if name == "r50_instance_lvis":  # whose data set, alone, says its classes when it is read
        MetadataCatalog.remove("lvis_v1_train")
        MetadataCatalog.get("lvis_v1_train").thing_classes = [f"class {i}" for i in range(1203)]
    before, trained = train(cfg)
    moved = {key for key, value in trained.items() if not torch.equal(before[key], value)}
    patterns = [*cfg.SOLVER.FREEZE, *[r"^text_encoder\.bert\."] * cfg.MODEL.TEXT_ENCODER.FREEZE_ON]
    frozen = {key for key in before if any(re.search(pattern, key) for pattern in patterns)}
    assert moved and not moved & frozen
    assert any(key.startswith(TRUNKS) for key in moved | frozen)


def build(cfg: CfgNode) -> torch.nn.Module:
    return MODELS[cfg.MODEL.META_ARCHITECTURE](cfg)


def train(cfg: CfgNode) -> tuple[dict[str, Any], dict[str, Any]]:
    """State before and after the run."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    return before, trainer.model.state_dict()


# ------------------------------------------------------------------- fine-tuning from files of the published forms

STARTS = {
    "swin_t_finetune_coco": ("swin_t_ogc", "official"),
    "swin_b_finetune_coco": ("swin_b_cogcoor", "official"),
    "mm_swin_t_finetune_coco": ("mm_swin_t", "mmdet"),
    "one_class": ("swin_t_ogc", "official"),
    "glip_t_a_finetune_coco": ("glip_t_a", "official"),
    "glip_t_c_finetune_coco": ("glip_t_c", "mmdet"),
    "r50_4scale_finetune": ("r50_4scale_12ep", "official"),
    "shapes_tiny_finetune": ("shapes_tiny", "ours"),
    "shapes_tiny_one_class": ("shapes_tiny", "ours"),
    "shapes_tiny_masks_finetune": ("shapes_tiny_panoptic", "ours"),
}


@pytest.fixture
def one_picture(tmp_path: Path) -> Iterator[str]:
    """A `--dataset` argument for one 64 x 64 picture with one box; its names are forgotten afterwards."""
    before = set(DatasetCatalog)
    Image.new("RGB", (64, 64), (90, 120, 30)).save(tmp_path / "0.png")
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": 64, "height": 64}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 7,
                "bbox": [8, 8, 32, 24],
                "segmentation": [[8, 8, 40, 8, 40, 32, 8, 32]],
                "area": 768,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 7, "name": "cat"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    yield f"one_picture={tmp_path / 'boxes.json'}:{tmp_path}"
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", STARTS)
def test_fine_tuning_starts_from_the_published_form_and_trains(name: str, one_picture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, origin = STARTS[name]
    start = str(tmp_path / "start.pth")
    # the files of Grounding DINO's authors and mmdet's conversions have no denoising part, DINO's and ours do
    denoising = {"MODEL.DENOISING.ENABLED_ON": origin == "ours" or base == "r50_4scale_12ep"}
    state = build(load_cfg(base, options({**SMALL, **denoising}))).state_dict()
    save_checkpoint(start, state, to=origin)
    run = {
        "MODEL.WEIGHTS": start,
        "DATASETS.EXTRA": [one_picture],
        "DATASETS.TRAIN": ["one_picture"],
        "DATASETS.TEST": ["one_picture"],
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.STEPS": [],
        "TEST.EVAL_PERIOD": 1,
        "SOLVER.MAX_ITER": 1,
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    cfg = load_cfg(name, options({**SMALL, **run}))
    before, trained = train(cfg)
    fitting = [key for key, value in state.items() if key in trained and value.shape == trained[key].shape]
    assert any(not torch.equal(state[key], trained[key]) for key in fitting if key.startswith(TRUNKS))
    assert all(torch.equal(state[key], before[key]) for key in fitting)
    if cfg.MODEL.CLASS_HEAD.NAME == "Linear":  # what does not fit other classes, and nothing else
        new = {key.rsplit(".", 1)[0] for key in before if key not in fitting}
        heads = {f"transformer_decoder.class_heads.{layer}" for layer in range(2)}
        assert new <= {*heads, "query_selection.class_head", "denoising.label_embedding"} and len(new) >= 2
    assert cfg.SOLVER.BEST_CHECKPOINT_METRIC == "" or (tmp_path / "out" / "model_best.pth").is_file()
    if cfg.MODEL.TEXT_ENCODER.FREEZE_ON:
        text = [key for key in before if key.startswith("text_encoder.bert.")]
        assert text and all(torch.equal(before[key], trained[key]) for key in text)
