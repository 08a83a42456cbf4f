"""DINO's and Mask DINO's configurations say what the authors' and mmdet's do, key by key."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.fitting import fit_heads
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.engine.optimizer import parameter_groups
from grounding_dino.model_zoo import list_configs, load_cfg
from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO

import pytest
import torch
from detectron2.config import CfgNode

REFERENCE = Path(__file__).parent / "reference"
DINO_FACTS, MASK_DINO_FACTS = ((REFERENCE / name / "README.md").read_text() for name in ("dino", "mask_dino"))

# ------------------------------------------------------------------------------------------------------- Mask DINO

# The letters of the README's table of configurations, and what is written here after the same files.
MASK_DINO = {
    "A": "r50_instance_hid1024",
    "B": "r50_instance",
    "C": "swin_l_instance",
    "D": "r50_panoptic",
    "E": "swin_l_panoptic",
    "F": "ade20k/r50_semantic",
    "G": "cityscapes/r50_semantic",
}
MAPPERS = {  # theirs -> ours, and whether with large-scale jitter
    "coco_instance_lsj": ("InstanceMapper", True),
    "coco_panoptic_lsj": ("PanopticMapper", True),
    "mask_former_semantic": ("SemanticMapper", False),
}
# The authors' key -> ours, where only the name differs.
KEYS = {
    "INPUT.COLOR_AUG_SSD": "INPUT.COLOR_AUG_SSD_ON",
    "INPUT.IMAGE_SIZE": "INPUT.LARGE_SCALE_JITTER.SIZE",
    "INPUT.MIN_SCALE": "INPUT.LARGE_SCALE_JITTER.MIN_SCALE",
    "INPUT.MAX_SCALE": "INPUT.LARGE_SCALE_JITTER.MAX_SCALE",
    "MODEL.MaskDINO.INITIALIZE_BOX_TYPE": "MODEL.QUERY_SELECTION.BOX_INIT",
    "MODEL.MaskDINO.NUM_OBJECT_QUERIES": "MODEL.QUERY_SELECTION.NUM_QUERIES",
    "MODEL.MaskDINO.INITIAL_PRED": "MODEL.TRANSFORMER_DECODER.INITIAL_PREDICTION_ON",
    "MODEL.MaskDINO.DEC_LAYERS": "MODEL.TRANSFORMER_DECODER.NUM_LAYERS",
    "MODEL.MaskDINO.DIM_FEEDFORWARD": "MODEL.TRANSFORMER_DECODER.FFN_DIM",
    "MODEL.MaskDINO.NHEADS": "MODEL.TRANSFORMER_DECODER.NUM_HEADS",
    "MODEL.MaskDINO.HIDDEN_DIM": "MODEL.EMBED_DIM",
    "MODEL.MaskDINO.DROPOUT": "MODEL.PIXEL_DECODER.DROPOUT",
    "MODEL.MaskDINO.SIZE_DIVISIBILITY": "MODEL.SIZE_DIVISIBILITY",
    "MODEL.MaskDINO.DN_NUM": "MODEL.DENOISING.NUM_QUERIES",
    "MODEL.MaskDINO.TEST.INSTANCE_ON": "TEST.INSTANCE_ON",
    "MODEL.MaskDINO.TEST.PANOPTIC_ON": "TEST.PANOPTIC_ON",
    "MODEL.MaskDINO.TEST.SEMANTIC_ON": "TEST.SEMANTIC_ON",
    "MODEL.MaskDINO.TEST.OBJECT_MASK_THRESHOLD": "TEST.OBJECT_MASK_THRESHOLD",
    "MODEL.MaskDINO.TEST.OVERLAP_THRESHOLD": "TEST.OVERLAP_THRESHOLD",
    "MODEL.MaskDINO.TEST.PANO_TEMPERATURE": "TEST.CLASS_TEMPERATURE",
    "MODEL.MaskDINO.CLASS_WEIGHT": "MODEL.LOSS.CLASS_WEIGHT",
    "MODEL.MaskDINO.BOX_WEIGHT": "MODEL.LOSS.L1_WEIGHT",
    "MODEL.MaskDINO.GIOU_WEIGHT": "MODEL.LOSS.GIOU_WEIGHT",
    "MODEL.MaskDINO.MASK_WEIGHT": "MODEL.LOSS.MASK_WEIGHT",
    "MODEL.MaskDINO.DICE_WEIGHT": "MODEL.LOSS.DICE_WEIGHT",
    "MODEL.MaskDINO.COST_CLASS_WEIGHT": "MODEL.MATCHER.CLASS_WEIGHT",
    "MODEL.MaskDINO.COST_BOX_WEIGHT": "MODEL.MATCHER.L1_WEIGHT",
    "MODEL.MaskDINO.COST_GIOU_WEIGHT": "MODEL.MATCHER.GIOU_WEIGHT",
    "MODEL.MaskDINO.COST_MASK_WEIGHT": "MODEL.MATCHER.MASK_WEIGHT",
    "MODEL.MaskDINO.COST_DICE_WEIGHT": "MODEL.MATCHER.DICE_WEIGHT",
    "MODEL.MaskDINO.NO_OBJECT_WEIGHT": "MODEL.LOSS.NO_OBJECT_WEIGHT",
    "MODEL.MaskDINO.TRAIN_NUM_POINTS": "MODEL.LOSS.NUM_POINTS",
    "MODEL.MaskDINO.OVERSAMPLE_RATIO": "MODEL.LOSS.OVERSAMPLE_RATIO",
    "MODEL.MaskDINO.IMPORTANCE_SAMPLE_RATIO": "MODEL.LOSS.IMPORTANCE_SAMPLE_RATIO",
    "MODEL.SEM_SEG_HEAD.DIM_FEEDFORWARD": "MODEL.PIXEL_DECODER.FFN_DIM",
    "MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS": "MODEL.PIXEL_DECODER.NUM_FEATURE_LEVELS",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "MODEL.PIXEL_DECODER.NUM_LAYERS",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "MODEL.CLASS_HEAD.NUM_CLASSES",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "MODEL.EMBED_DIM",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "MODEL.MASK_HEAD.EMBED_DIM",
    "MODEL.SWIN.USE_CHECKPOINT": "MODEL.SWIN.ACTIVATION_CHECKPOINTING_ON",
}
# Keys with another value than ours, whose meaning is checked: (the authors' value, our configuration) -> equal?
MEANINGS = {
    "INPUT.DATASET_MAPPER_NAME": lambda value, cfg: (
        MAPPERS[value] == (cfg.INPUT.MAPPER, cfg.INPUT.LARGE_SCALE_JITTER.ENABLED_ON)
    ),
    "MODEL.BACKBONE.NAME": lambda value, cfg: value.removeprefix("D2") == cfg.MODEL.BACKBONE.NAME,
    "MODEL.MaskDINO.SEMANTIC_CE_LOSS": lambda value, cfg: value == (cfg.MODEL.LOSS.CLASS == "cross_entropy"),
    "MODEL.MaskDINO.TWO_STAGE": lambda value, cfg: value == (cfg.MODEL.QUERY_SELECTION.NAME == "TopTokens"),
    "MODEL.MaskDINO.LEARN_TGT": lambda value, cfg: value == (cfg.MODEL.QUERY_SELECTION.CONTENT == "learned"),
    "MODEL.MaskDINO.DN": lambda value, cfg: (value == "seg") == cfg.MODEL.DENOISING.ENABLED_ON,
    "MODEL.MaskDINO.DN_NOISE_SCALE": lambda value, cfg: (
        {value} == {cfg.MODEL.DENOISING.LABEL_NOISE_RATIO, cfg.MODEL.DENOISING.BOX_NOISE_SCALE}
    ),
    "MODEL.MaskDINO.PANO_BOX_LOSS": lambda value, cfg: value != cfg.MODEL.LOSS.BOXES_OF_STUFF_ON,
    "MODEL.MaskDINO.TEST.PANO_TRANSFORM_EVAL": lambda value, cfg: value == bool(cfg.TEST.CLASS_TEMPERATURE),
    "MODEL.MaskDINO.TEST.TEST_FOUCUS_ON_BOX": lambda value, cfg: value != cfg.TEST.MASK_SCORE_ON,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": lambda value, cfg: (
        our_features(value, cfg) == cfg.MODEL.PIXEL_DECODER.IN_FEATURES
    ),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": lambda value, cfg: (
        our_features(value, cfg)
        == (cfg.MODEL.SWIN if "Swin" in cfg.MODEL.BACKBONE.NAME else cfg.MODEL.RESNETS).OUT_FEATURES
        and cfg.MODEL.MASK_HEAD.IN_FEATURE == our_features(value, cfg)[0]
    ),
    # their encoder's order is reversed in the decoder, whose first level has the smallest proposals
    "MODEL.SEM_SEG_HEAD.FEATURE_ORDER": lambda value, cfg: (
        {"low2high": "coarsest", "high2low": "finest"}[value] == cfg.MODEL.QUERY_SELECTION.SMALLEST_PROPOSALS
    ),
    "MODEL.SWIN.DROP_PATH_RATE": lambda value, cfg: (
        "Swin" not in cfg.MODEL.BACKBONE.NAME or value == cfg.MODEL.SWIN.DROP_PATH_RATE
    ),
}
FIXED = {  # what their keys can only switch to something that no published model has
    *("MODEL.MaskDINO.BOX_LOSS", "MODEL.MaskDINO.DEEP_SUPERVISION", "MODEL.MaskDINO.ENFORCE_INPUT_PROJ"),
    *("MODEL.MaskDINO.TRANSFORMER_DECODER_NAME", "MODEL.SEM_SEG_HEAD.NAME", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"),
    *("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "MODEL.SEM_SEG_HEAD.NORM", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"),
    *("MODEL.SWIN.APE", "MODEL.SWIN.ATTN_DROP_RATE", "MODEL.SWIN.DROP_RATE", "MODEL.SWIN.PATCH_NORM"),
    *("MODEL.SWIN.PATCH_SIZE", "MODEL.SWIN.QKV_BIAS", "MODEL.SWIN.QK_SCALE", "MODEL.SWIN.PRETRAIN_IMG_SIZE"),
    *("MODEL.SWIN.OUT_FEATURES", "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA"),
    "MODEL.MaskDINO.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE",
    # rates and decay by parameter: test_rates_and_decay_of_mask_dino
    *("SOLVER.BACKBONE_MULTIPLIER", "SOLVER.WEIGHT_DECAY_EMBED"),
}


def our_features(names: list[str], cfg: CfgNode) -> list[str]:
    if "Swin" not in cfg.MODEL.BACKBONE.NAME:
        return names
    return [f"stage{int(name[-1]) - 1}" for name in names]


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def authors_values() -> dict[str, dict[str, Any]]:
    """Letter -> key -> value, of every key that the README gives."""
    values: dict[str, dict[str, Any]] = {letter: {} for letter in MASK_DINO}
    keys = MASK_DINO_FACTS[MASK_DINO_FACTS.index("## Config keys") :]
    for line in keys.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 9 and "." in cells[0]:
            for letter, cell in zip(MASK_DINO, cells[2:], strict=True):
                values[letter][cells[0]] = literal(cells[1] if cell == "=" else cell)
    common = re.findall(r"`([A-Za-z_.]+)` (.+?) \(default ", keys) + re.findall(r"`([A-Za-z_.]+)`=([^;\n]+)", keys)
    for mine in values.values():
        mine.update({key: literal(value) for key, value in common})
    return values


def without_effect() -> set[str]:
    (sentence,) = re.findall(r"Keys without effect on the model: ([^.]+(?:\.LOSS_WEIGHT)?)\.", MASK_DINO_FACTS)
    short = sentence.replace("\n", " ").replace(
        "_N_POINTS/_N_HEADS", "_N_POINTS, DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS"
    )
    names = {name.strip() for name in short.split(",")}
    return {key for values in authors_values().values() for key in values if key.rsplit(".", 1)[-1] in names} | {
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"
    }


def value_of(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def test_every_key_of_the_authors_is_looked_at() -> None:
    keys = set(authors_values()["A"])
    assert len(keys) > 100
    cfg = load_cfg("r50_instance")
    unnamed = keys - set(KEYS) - set(MEANINGS) - FIXED - without_effect()
    for key in unnamed:  # Detectron2's own
        value_of(cfg, key)


@pytest.mark.parametrize("letter", MASK_DINO)
def test_mask_dino_has_the_authors_values(letter: str) -> None:
    cfg = load_cfg(MASK_DINO[letter])
    for key, value in authors_values()[letter].items():
        if key in MEANINGS:
            assert MEANINGS[key](value, cfg), (key, value)
        elif key not in FIXED | without_effect():
            ours = value_of(cfg, KEYS.get(key, key))
            ours, value = (list(v) if isinstance(v, (list, tuple)) else v for v in (ours, value))
            assert ours == value, key
    assert cfg.MODEL.DENOISING.NUM_LABELS == cfg.MODEL.CLASS_HEAD.NUM_CLASSES
    assert cfg.SOLVER.IMS_PER_BATCH == 16


@pytest.mark.parametrize("name", [*MASK_DINO.values(), "swin_l_instance_no_mask_enhance", "r50_instance_lvis"])
def test_what_all_mask_dino_models_share(name: str) -> None:
    """Facts that the authors' code fixes and ours makes parameters of."""
    model = load_cfg(name).MODEL
    assert model.MASK_ON and not model.PADDING_MASK_ON and model.TEXT_ENCODER.NAME == ""
    assert model.PIXEL_DECODER.POSITION_TEMPERATURE == 10000
    decoder, selection, noise = model.TRANSFORMER_DECODER, model.QUERY_SELECTION, model.DENOISING
    assert decoder.REFERENCE_EPS == decoder.BOX_EPS == 1e-5
    assert decoder.NORM_BEFORE_HEADS_ON and decoder.SHARED_BOX_HEAD_ON and decoder.DROPOUT == 0
    assert selection.SHARED_HEADS_ON and model.CLASS_HEAD.SHARED_ON and model.CLASS_HEAD.NAME == "Linear"
    assert (noise.CONTRASTIVE_ON, noise.BOX_NOISE, noise.MIN_GROUPS) == (False, "centre_and_size", 0)
    assert model.CLASS_HEAD.CATEGORY_IDS == []
    assert (model.LOSS.FOCAL_ALPHA, model.LOSS.FOCAL_GAMMA) == (0.25, 2)


def test_swin_without_mask_enhancement_differs_in_nothing_else() -> None:
    cfg, other = load_cfg("swin_l_instance_no_mask_enhance"), load_cfg("swin_l_instance")
    assert cfg.MODEL.QUERY_SELECTION.BOX_INIT == "no" != other.MODEL.QUERY_SELECTION.BOX_INIT
    other.MODEL.QUERY_SELECTION.BOX_INIT, other.MODEL.RELEASE = "no", cfg.MODEL.RELEASE
    assert cfg == other


@pytest.mark.parametrize("name", [*MASK_DINO.values(), "swin_l_instance_no_mask_enhance"])
def test_published_figures_of_mask_dino(name: str) -> None:
    """The names of the files hold the figures that their configurations say."""
    release = load_cfg(name).MODEL.RELEASE
    figures = re.findall(r"(?:mask|box|pq|_)(\d\d\.\d)(?:ap|pq|miou)?", release.URL.rsplit("/", 1)[-1])
    assert figures and set(figures) <= set(re.findall(r"\d\d\.\d", release.METRIC)), (figures, release.METRIC)


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", ["r50_instance", "swin_l_instance", "cityscapes/r50_semantic"])
def test_rates_and_decay_of_mask_dino(name: str) -> None:
    """The backbone at a tenth of the rate; norms, embeddings and Swin's position tables do not decay."""
    cfg = load_cfg(name)
    model = GeneralizedDINO(cfg)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for group in parameter_groups(cfg, model):
        for parameter in group["params"]:
            key = names[id(parameter)]
            assert group["lr"] == pytest.approx(1e-5 if key.startswith("backbone.") else 1e-4), key
            whole = re.search(r"embedding\.weight|reference_logits|query_selection\.content|bias_table", key)
            is_norm = "norm" in key or re.search(r"(input_projection\.\w+|mask_features\.output)\.1\.", key)
            assert group["weight_decay"] == (0 if whole or is_norm else 0.05), key


# ------------------------------------------------------------------------------------------------------------ DINO

DINO = {  # box AP, epochs, epochs at which the rate falls
    "r50_4scale_12ep": (49.0, 12, [11]),
    "r50_4scale_24ep": (50.4, 24, [20]),
    "r50_4scale_36ep": (50.9, 36, [30]),
    "r50_5scale_12ep": (49.4, 12, [11]),
    "r50_5scale_24ep": (51.3, 24, [20]),
    "r50_5scale_36ep": (51.2, 36, [30]),
    "swin_l_4scale_12ep": (56.8, 12, [11]),
    "swin_l_4scale_36ep": (58.0, 36, [27, 33]),
    "swin_l_5scale_12ep": (57.3, 12, [11]),
    "swin_l_5scale_36ep": (58.5, 36, [27, 33]),
}
MMDET_DINO = {
    "mmdet_r50_4scale_12ep": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "mmdet_swin_l_5scale_12ep": "dino/dino-5scale_swin-l_8xb2-12e_coco.py",
    "mmdet_swin_l_5scale_36ep": "dino/dino-5scale_swin-l_8xb2-36e_coco.py",
}


@pytest.fixture(scope="module")
def recipes() -> dict[str, Any]:
    return dict(json.loads((REFERENCE / "mmdet" / "recipes.json").read_text()))


@pytest.mark.parametrize("name", [*DINO, "convnext_xl_4scale_12ep"])
def test_dino_has_the_authors_values(name: str) -> None:
    cfg = load_cfg(name)
    model, solver = cfg.MODEL, cfg.SOLVER
    assert "hidden 256, 8 heads, FFN 2048, 6+6 layers, 900 queries, 91 classes, num_select 300" in DINO_FACTS
    for part in (model.PIXEL_DECODER, model.TRANSFORMER_DECODER):
        assert (part.NUM_HEADS, part.NUM_POINTS, part.FFN_DIM, part.NUM_LAYERS, part.DROPOUT) == (8, 4, 2048, 6, 0)
    assert (model.EMBED_DIM, model.QUERY_SELECTION.NUM_QUERIES, cfg.TEST.DETECTIONS_PER_IMAGE) == (256, 900, 300)
    head, noise = model.CLASS_HEAD, model.DENOISING
    assert (head.NAME, head.NUM_CLASSES, head.SHARED_ON, noise.NUM_LABELS) == ("Linear", 91, True, 92)
    assert model.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON and not model.QUERY_SELECTION.SHARED_HEADS_ON
    assert (noise.NUM_QUERIES, noise.LABEL_NOISE_RATIO, noise.BOX_NOISE_SCALE) == (100, 0.5, 1.0)
    assert (noise.CONTRASTIVE_ON, noise.BOX_NOISE, noise.MIN_GROUPS) == (True, "corners", 1)
    assert model.PIXEL_DECODER.POSITION_TEMPERATURE == 20 and model.PADDING_MASK_ON and model.SIZE_DIVISIBILITY == 0
    assert model.TRANSFORMER_DECODER.REFERENCE_EPS == model.TRANSFORMER_DECODER.BOX_EPS == 1e-3
    assert [model.LOSS[f"{part}_WEIGHT"] for part in ("CLASS", "L1", "GIOU")] == [1, 5, 2]
    assert [model.MATCHER[f"{part}_WEIGHT"] for part in ("CLASS", "L1", "GIOU")] == [2, 5, 2]
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (1e-4, 1e-4, 1e-4)
    assert solver.PARAMETER_GROUPS == [[r"^backbone\.", 0.1, 1.0]]
    assert (solver.CLIP_GRADIENTS.CLIP_VALUE, solver.IMS_PER_BATCH, solver.WARMUP_ITERS) == (0.1, 16, 0)
    assert [*cfg.INPUT.MIN_SIZE_TRAIN] == [*range(480, 801, 32)] and cfg.INPUT.CROP.MIN_SIZES == [400, 500, 600]
    levels = 5 if "5scale" in name else 4
    assert model.PIXEL_DECODER.NUM_FEATURE_LEVELS == levels == len(model.PIXEL_DECODER.IN_FEATURES) + 1


@pytest.mark.parametrize("name", DINO)
def test_length_and_figure_of_dino(name: str) -> None:
    cfg, (figure, epochs, steps) = load_cfg(name), DINO[name]
    assert (cfg.SOLVER.EPOCHS.MAX, cfg.SOLVER.EPOCHS.STEPS) == (epochs, steps)
    assert cfg.MODEL.RELEASE.METRIC == f"COCO val box AP {figure}" and str(figure) in DINO_FACTS


def test_lengths_are_those_of_mmdet(recipes: dict[str, Any]) -> None:
    """The authors' documents give them for 12 epochs alone."""
    for ours, theirs in (("r50_4scale", "4scale_r50"), ("swin_l_5scale", "5scale_swin-l")):
        for name in (name for name in DINO if name.startswith(ours)):
            epochs = DINO[name][1]
            assert DINO[name][2] == recipes[f"dino/dino-{theirs}_8xb2-{epochs}e_coco.py"]["schedule"][0]["milestones"]


def test_columns_of_dino_are_the_ids_of_coco() -> None:
    ids = load_cfg("dino/r50_4scale_12ep").MODEL.CLASS_HEAD.CATEGORY_IDS
    unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # of 1 to 90
    assert ids == [number for number in range(1, 91) if number not in unused] and len(ids) == 80


@pytest.mark.parametrize("name", MMDET_DINO)
def test_dino_of_mmdet(name: str, recipes: dict[str, Any]) -> None:
    cfg, recipe = load_cfg(name), recipes[MMDET_DINO[name]]
    model, losses = cfg.MODEL, recipe["losses"]
    assert recipe["url"] == model.RELEASE.URL
    assert model.RELEASE.METRIC == f"COCO val box AP {recipe['published_metric']['COCO val box AP']}"
    assert (model.CLASS_HEAD.NUM_CLASSES, model.CLASS_HEAD.CATEGORY_IDS) == (recipe["num_classes"], [])
    assert model.DENOISING.NUM_LABELS == recipe["denoising"]["num_label_embeddings"]
    assert model.DENOISING.BOX_NOISE_SCALE == recipe["denoising"]["box_noise_scale"]
    assert model.PIXEL_DECODER.NUM_FEATURE_LEVELS == recipe["num_feature_levels"]
    assert model.PIXEL_DECODER.POSITION_TEMPERATURE == recipe["sine_position"]["temperature"]
    assert not model.PIXEL_DECODER.PROJECTION_BIAS_ON and not model.CLASS_HEAD.SHARED_ON
    assert not model.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON and model.TRANSFORMER_DECODER.BOX_EPS == 1e-5
    weights = [losses[loss]["loss_weight"] for loss in ("loss_cls", "loss_bbox", "loss_iou")]
    assert [model.LOSS[f"{part}_WEIGHT"] for part in ("CLASS", "L1", "GIOU")] == weights
    costs = [cost["weight"] for cost in recipe["matcher"]]
    assert [model.MATCHER[f"{part}_WEIGHT"] for part in ("CLASS", "L1", "GIOU")] == costs
    assert (cfg.SOLVER.EPOCHS.MAX, cfg.SOLVER.EPOCHS.STEPS) == (
        recipe["length"]["epochs"],
        recipe["schedule"][0]["milestones"],
    )
    assert cfg.SOLVER.BASE_LR == recipe["optimizer"]["lr"] and cfg.SOLVER.IMS_PER_BATCH == recipe["base_batch_size"]
    if model.BACKBONE.NAME == "SwinTransformer":
        keys = ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE", "DROP_PATH_RATE", "ACTIVATION_CHECKPOINTING_ON")
        theirs = ("embed_dims", "depths", "num_heads", "window_size", "drop_path_rate", "with_cp")
        assert [model.SWIN[key] for key in keys] == [recipe["backbone"][key] for key in theirs]
    else:
        assert model.BACKBONE.FREEZE_AT == recipe["frozen"]["backbone_stages"] + 1  # ours counts the stem


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", MMDET_DINO)
def test_learning_rates_of_mmdets_dino(name: str, recipes: dict[str, Any]) -> None:
    cfg = load_cfg(name)
    model = GeneralizedDINO(cfg)
    ours = Counter({f"{group['lr']:g}": len(group["params"]) for group in parameter_groups(cfg, model)})
    theirs = {
        f"{group['lr']:g}": sum(group["tensors"].values()) for group in recipes[MMDET_DINO[name]]["resolved_groups"]
    }
    assert ours == {rate: count for rate, count in theirs.items() if rate != "0"}


# configuration -> names and shapes of the file that it loads
FILES = {
    "r50_4scale_12ep": "dino/manifest_r50_4scale",
    "r50_5scale_36ep": "dino/manifest_r50_5scale",
    "swin_l_4scale_12ep": "dino/manifest_swinl_4scale",
    "swin_l_5scale_36ep": "dino/manifest_swinl_5scale",
    "convnext_xl_4scale_12ep": "dino/manifest_convnext_xl_4scale",
    "mmdet_r50_4scale_12ep": "mmdet/manifest_mmdet_dino-4scale_r50_8xb2-12e_coco",
    "mmdet_swin_l_5scale_12ep": "mmdet/manifest_mmdet_dino-5scale_swin-l_8xb2-12e_coco",
    "r50_instance_hid1024": "mask_dino/manifest_r50_instance_hid1024",
    "r50_instance": "mask_dino/manifest_r50_instance_2048",
    "swin_l_instance": "mask_dino/manifest_swinl_instance",
    "swin_l_instance_no_mask_enhance": "mask_dino/manifest_swinl_instance",
    "r50_panoptic": "mask_dino/manifest_r50_panoptic",
    "swin_l_panoptic": "mask_dino/manifest_swinl_panoptic",
    "ade20k/r50_semantic": "mask_dino/manifest_ade20k_semantic",
    "cityscapes/r50_semantic": "mask_dino/manifest_cityscapes_semantic",
}


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", FILES)
def test_names_and_shapes_of_the_published_files(name: str) -> None:
    manifest = json.loads((REFERENCE / f"{FILES[name]}.json").read_text())
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in manifest.items()}
    expected = GeneralizedDINO(load_cfg(name)).state_dict()
    checkpoint = translate_checkpoint({"model": tensors}, name)
    assert not checkpoint.unknown
    given = {key: tuple(value.shape) for key, value in fit_heads(checkpoint.state, expected).items()}
    assert given == {key: tuple(v.shape) for key, v in expected.items() if not key.endswith("num_batches_tracked")}


def test_all_configurations_of_closed_sets_are_checked() -> None:
    groups = {"convnext_xl_4scale_12ep", "r50_4scale_finetune", "swin_l_instance_no_mask_enhance", "r50_instance_lvis"}
    known = {*DINO, *MMDET_DINO, *MASK_DINO.values(), *groups, "shapes_tiny_panoptic", "shapes_tiny_masks_finetune"}
    closed = {name for name in list_configs() if not load_cfg(name).MODEL.TEXT_ENCODER.NAME}
    assert closed == known
