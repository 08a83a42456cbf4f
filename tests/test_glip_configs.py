"""GLIP's configurations say what was published and what mmdet's recipes do, key by key and tensor by tensor."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import grounding_dino.data.datasets
import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.engine.optimizer import freeze_parameters, parameter_groups
from grounding_dino.model_zoo import load_cfg
from grounding_dino.modeling.meta_arch.glip import GLIP

import pytest
import torch
from detectron2.data import MetadataCatalog

REFERENCE = Path(__file__).parent / "reference"
FOLDER = "https://download.openmmlab.com/mmdetection/v3.0/glip/"
MANIFESTS = {"a": "swin-t_a_fpn_dyhead_pretrain_obj365", "t": "swin-t_c_fpn_dyhead_pretrain_obj365-goldg"}
MANIFESTS |= {"l": "swin-l_fpn_dyhead_pretrain_mixeddata"}
# pre-trained model -> its file, the manifest of its names, COCO box AP by mmdet and by the authors, before and after
# fine-tuning (the table of mmdet's README)
PUBLISHED: dict[str, tuple[str, str, tuple[float, ...], tuple[float, ...]]] = {
    "glip_t_a": ("glip_tiny_a_mmdet-b3654169.pth", "a", (43.0, 42.9), (53.3, 52.9)),
    "glip_t_b": ("glip_tiny_b_mmdet-6dfbd102.pth", "t", (44.9, 44.9), (54.1, 53.8)),
    "glip_t_c": ("glip_tiny_c_mmdet-2fc427dd.pth", "t", (46.7, 46.7), (55.2, 55.1)),
    "glip_t": ("glip_tiny_mmdet-c24ce662.pth", "t", (46.6, 46.6), (55.4, 55.2)),
    "glip_l": ("glip_l_mmdet-abfe026b.pth", "l", (51.3, 51.4), (59.4,)),
}
FINE_TUNED = [f"{name}_finetune_coco" for name in PUBLISHED]
Recipe = dict[str, Any]


def read(path: str) -> Any:
    return json.loads((REFERENCE / f"{path}.json").read_text())


def pre_trained(name: str) -> str:
    return name.removesuffix("_finetune_coco")


def manifest(name: str) -> dict[str, list[int]]:
    """Names and shapes of all parameters, as mmdet has them."""
    shapes: dict[str, list[int]] = read(f"glip/manifest_mmdet_glip_atss_{MANIFESTS[PUBLISHED[pre_trained(name)][1]]}")
    return shapes


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    """mmdet's, by the names of ours, and the pipelines that they number."""
    known = read("mmdet/recipes")
    kinds = {name: pre_trained(name).removeprefix("glip_").replace("_", "-") for name in FINE_TUNED}
    files = {
        name: f"glip/glip_atss_swin-{kind.replace('t-', 't_')}_fpn_dyhead_16xb2_ms-2x_funtune_coco.py"
        for name, kind in kinds.items()
    }
    return {name: known[file] for name, file in files.items()} | {"pipelines": known["_pipelines"]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_say_what_was_published(name: str) -> None:
    file, _, zero_shot, fine_tuned = PUBLISHED[name]
    start, trained = load_cfg(name).MODEL, load_cfg(f"{name}_finetune_coco").MODEL
    assert start.RELEASE.URL == trained.WEIGHTS == FOLDER + file and not start.WEIGHTS
    for model, figures in ((start, zero_shot), (trained, fine_tuned)):
        said = tuple(map(float, re.findall(r"\d+\.\d", model.RELEASE.METRIC)))
        assert said == figures


@pytest.mark.parametrize("name", PUBLISHED)
def test_documents_have_the_published_numbers(name: str) -> None:
    for config, figures in zip((name, f"{name}_finetune_coco"), PUBLISHED[name][2:], strict=True):
        kind = "zero-shot" if config == name else "fine-tuned"
        (row,) = (row for row in rows("MODEL_ZOO.md", config) if f"| {kind} |" in row)  # others are of other data
        assert tuple(map(float, re.findall(r"\b\d\d\.\d\b", row))) == figures
        assert all(f"| {figures[0]} {kind} " in row for row in rows("README.md", config))


def rows(document: str, config: str) -> list[str]:
    """Table rows about published numbers of a configuration."""
    text = (REFERENCE.parents[1] / document).read_text(encoding="utf-8")
    return re.findall(rf"^\| `{config}` +\|.*\d\d\.\d.*$", text, re.MULTILINE)


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", [*PUBLISHED, *FINE_TUNED])
def test_files_fit(name: str) -> None:
    expected = GLIP(load_cfg(name)).state_dict()
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in manifest(name).items()}
    checkpoint = translate_checkpoint({"state_dict": tensors}, name)
    assert (checkpoint.origin, checkpoint.model, checkpoint.unknown) == ("mmdet", "glip", ())
    assert {k: tuple(v.shape) for k, v in checkpoint.state.items()} == {k: tuple(v.shape) for k, v in expected.items()}


@pytest.mark.parametrize("name", FINE_TUNED)
def test_model_of_the_recipe(name: str, recipes: dict[str, Recipe]) -> None:
    cfg, recipe = load_cfg(name), recipes[name]
    model, head = cfg.MODEL, cfg.MODEL.DENSE_HEAD
    assert (model.WEIGHTS, model.RELEASE.URL) == (recipe["init_from"], recipe["url"])
    assert f"{recipe['published_metric']['COCO val box AP']}" in model.RELEASE.METRIC
    theirs = ("embed_dims", "depths", "num_heads", "window_size", "drop_path_rate", "with_cp")
    ours = ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE", "DROP_PATH_RATE", "ACTIVATION_CHECKPOINTING_ON")
    assert [model.SWIN[key] for key in ours] == [recipe["backbone"][key] for key in theirs]
    assert [model.PIXEL_MEAN, model.PIXEL_STD] == [recipe["input"]["mean"], recipe["input"]["std"]]
    assert (cfg.INPUT.FORMAT, model.SIZE_DIVISIBILITY) == ("BGR", recipe["input"]["pad_size_divisor"])
    text = recipe["text"]
    assert (model.TEXT_ENCODER.MAX_TOKENS, model.TEXT_ENCODER.SUB_SENTENCE_ON) == (
        text["max_tokens"],
        text["sub_sentence_masks"],
    )
    assert head.NUM_BLOCKS == recipe["head"].get("num_dyhead_blocks", 6)
    assert head.TEXT_FUSION.ENABLED_ON == recipe["head"].get("early_fuse", False)
    assert head.ACTIVATION_CHECKPOINTING_ON == recipe["head"].get("use_checkpoint", False)
    assert (head.ANCHOR_SCALE, head.NUM_CANDIDATES) == (
        recipe["anchors"]["octave_base_scale"],
        recipe["matcher"]["topk"],
    )
    losses = recipe["losses"]
    weights = [losses[loss]["loss_weight"] for loss in ("loss_cls", "loss_bbox", "loss_centerness")]
    assert [model.LOSS[f"{part}_WEIGHT"] for part in ("CLASS", "GIOU", "CENTERNESS")] == weights
    focal = losses["loss_cls"]
    assert (model.LOSS.FOCAL_ALPHA, model.LOSS.FOCAL_GAMMA) == (focal["alpha"], focal["gamma"])


@pytest.mark.parametrize("name", FINE_TUNED)
def test_detections_are_chosen_as_in_the_recipe(name: str, recipes: dict[str, Recipe]) -> None:
    cfg, test = load_cfg(name), recipes[name]["test"]
    head = cfg.MODEL.DENSE_HEAD
    assert (head.PRE_NMS_TOPK, head.SCORE_THRESHOLD) == (test["nms_pre"], test["score_thr"])
    assert (head.NMS_THRESHOLD, cfg.TEST.DETECTIONS_PER_IMAGE) == (test["nms"]["iou_threshold"], test["max_per_img"])
    assert not head.RANK_BY_CENTERNESS_ON and not head.NMS_LAST_PIXEL_ON  # mmdet's way
    zero_shot = load_cfg(pre_trained(name)).MODEL.DENSE_HEAD
    assert zero_shot.RANK_BY_CENTERNESS_ON and zero_shot.NMS_LAST_PIXEL_ON  # the authors'


@pytest.mark.parametrize("name", FINE_TUNED)
def test_pictures_and_prompt_of_the_recipe(name: str, recipes: dict[str, Any]) -> None:
    cfg, recipe = load_cfg(name), recipes[name]
    ((train,), (evaluated,)) = recipe["train_data"], recipe["eval_data"]
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("coco_2017_train",), ("coco_2017_val",))
    assert (train["annotation"], evaluated["annotation"]) == (
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
    )
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS == train["filter"]["filter_empty_gt"]
    steps = {step["op"]: step for step in recipes["pipelines"][train["pipeline"]]}
    resize, flip = steps["resize_random_choice"], steps["hflip"]
    assert ([*cfg.INPUT.MIN_SIZE_TRAIN], cfg.INPUT.MAX_SIZE_TRAIN) == (resize["short"], resize["long_max"])
    assert (cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.RANDOM_FLIP, flip["prob"]) == ("choice", "horizontal", 0.5)
    assert not cfg.INPUT.CROP.ENABLED and not any("crop" in step for step in steps)
    (resize,) = (step for step in recipes["pipelines"][evaluated["pipeline"]] if step["op"] == "resize")
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (resize["short"], resize["long_max"])
    assert recipe["negative_sampling"].startswith("none: the prompt lists all class names")
    assert (cfg.INPUT.NUM_NEGATIVE_CATEGORIES, cfg.INPUT.SHUFFLE_CATEGORIES_ON) == (-1, False)


@pytest.mark.parametrize("name", FINE_TUNED)
def test_solver_of_the_recipe(name: str, recipes: dict[str, Recipe]) -> None:
    cfg, recipe = load_cfg(name), recipes[name]
    solver, (warm_up, steps) = cfg.SOLVER, recipe["schedule"]
    processes, batch = map(int, re.findall(r"(\d+)xb(\d+)", recipe["url"])[0])
    assert (solver.IMS_PER_BATCH, batch) == (processes * batch, recipe["batch_per_gpu"])
    assert (solver.OPTIMIZER, solver.BASE_LR) == ("ADAMW", recipe["optimizer"]["lr"])
    assert {solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM} == {recipe["optimizer"]["weight_decay"]}
    clip = recipe["grad_clip"]
    assert solver.CLIP_GRADIENTS.ENABLED == (clip is not None)
    if clip:
        ours = solver.CLIP_GRADIENTS
        assert (ours.CLIP_TYPE, ours.CLIP_VALUE, ours.NORM_TYPE) == ("full_model", clip["max_norm"], clip["norm_type"])
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (
        warm_up["end"],
        warm_up["start_factor"],
        "linear",
    )
    assert (solver.LR_SCHEDULER_NAME, solver.GAMMA) == ("WarmupMultiStepLR", steps["gamma"])
    assert (solver.EPOCHS.MAX, [*solver.EPOCHS.STEPS]) == (recipe["length"]["epochs"], steps["milestones"])
    # ours are epochs of COCO, mmdet's go through it twice
    assert recipe["train_data"][0]["repeat"] == 2 and not cfg.DATASETS.RATIOS
    assert (solver.EPOCHS.EVAL_PERIOD, solver.BEST_CHECKPOINT_METRIC) == (1, "bbox/AP")
    assert not solver.AMP.ENABLED and recipe["mixed_precision"].startswith("off")


def mmdet_decay(name: str, recipe: Recipe) -> float:
    """Of a parameter of mmdet's: the first key, longest first, that its name contains."""
    multipliers = recipe["parameter_multipliers"]
    key = next((key for key in sorted(multipliers, key=len, reverse=True) if key in name), None)
    return float(recipe["optimizer"]["weight_decay"] * (multipliers[key]["decay_mult"] if key else 1.0))


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", FINE_TUNED)
def test_every_tensor_has_the_rate_and_decay_of_the_recipe(name: str, recipes: dict[str, Recipe]) -> None:
    recipe, shapes = recipes[name], manifest(name)
    decays = {key: mmdet_decay(key, recipe) for key in shapes}
    counted = Counter((key.split(".")[0], decay) for key, decay in decays.items())
    resolved = [(group["tensors"], group["weight_decay"]) for group in recipe["resolved_groups"]]
    assert counted == {(part, decay): n for tensors, decay in resolved for part, n in tensors.items()}
    # each tensor, at most 4 wide, filled with its decay, in our names
    filled = {key: torch.full([min(4, n) for n in shape], decays[key]) for key, shape in shapes.items()}
    translated = translate_checkpoint({"state_dict": filled}, name).state
    theirs = {key: {*value.unique().tolist()} for key, value in translated.items()}
    cfg = load_cfg(name)
    model = GLIP(cfg)
    assert freeze_parameters(cfg, model) == []
    names = {parameter: key for key, parameter in model.named_parameters()}
    groups = parameter_groups(cfg, model)
    ours = {names[p]: {torch.tensor(group["weight_decay"]).item()} for group in groups for p in group["params"]}
    assert ours == theirs
    assert {group["lr"] for group in groups} == {group["lr"] for group in recipe["resolved_groups"]}


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", [*PUBLISHED, *FINE_TUNED])
def test_levels_and_prompt_of_the_built_model(name: str, recipes: dict[str, Recipe]) -> None:
    model = GLIP(load_cfg(name))
    strides = recipes[FINE_TUNED[0]]["anchors"]["strides"]
    assert model.strides == strides
    (prompt,) = model.text_encoder.prompts.of_categories(MetadataCatalog.get("coco_2017_val").thing_classes, 0)
    assert len(prompt.category_indices) == 80
    assert prompt.caption.startswith("person. bicycle. car") and not prompt.caption.endswith(".")
