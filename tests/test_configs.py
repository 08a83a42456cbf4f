"""Every configuration loads, fits the released file it names, and says what was published."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.download import local_path
from grounding_dino.checkpoint.fitting import fit_heads
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.engine.optimizer import freeze_parameters, parameter_groups
from grounding_dino.model_zoo import PACKAGE, config_folders, get_config_file, list_configs, load_cfg
from grounding_dino.modeling.meta_arch.generalized_dino import GeneralizedDINO

import pytest
import torch
import yaml

REFERENCE = Path(__file__).parent / "reference"
CONFIGS = config_folders()[0]
OFFICIAL = "grounding_dino/manifest_"
MMDET = "mmdet/manifest_mmdet_"
MM = f"{MMDET}mm_grounding_dino_"

# configuration, names and shapes of a file that it loads, overrides
FILES = [
    ("swin_t_ogc", f"{OFFICIAL}swin_t_ogc", []),
    ("swin_t_ogc", f"{MMDET}grounding_dino_swin-t_pretrain_obj365_goldg_cap4m", ["MODEL.DENOISING.NUM_LABELS", 80]),
    ("swin_b_cogcoor", f"{OFFICIAL}swin_b_cogcoor", []),
    ("swin_b_cogcoor", f"{MMDET}grounding_dino_swin-b_pretrain_mixeddata", []),
    ("r50_scratch", f"{MMDET}grounding_dino_r50_scratch_8xb2_1x_coco", []),
    ("mm_swin_t", f"{MM}swin-t_pretrain_obj365_goldg", []),
    ("mm_swin_b", f"{MM}swin-b_pretrain_obj365_goldg_v3det", []),
    ("mm_swin_l", f"{MM}swin-l_pretrain_all", []),
    # what the fine-tunings start from
    ("swin_t_finetune_coco", f"{OFFICIAL}swin_t_ogc", []),
    ("swin_b_finetune_coco", f"{MMDET}grounding_dino_swin-b_pretrain_mixeddata", []),
    ("mm_swin_t_finetune_coco", f"{MM}swin-t_pretrain_obj365_goldg", []),
    ("mm_swin_t_finetune_refcoco", f"{MM}swin-t_pretrain_obj365_goldg", []),
    ("mm_swin_l_o365v2_oi_goldg", f"{MM}swin-l_pretrain_all", []),
    ("one_class", f"{OFFICIAL}swin_t_ogc", []),
]
GROUNDING, MM_GROUNDING = "grounding_dino/grounding_dino_", "mm_grounding_dino/"
RECIPES = {
    "r50_scratch": f"{GROUNDING}r50_scratch_8xb2_1x_coco.py",
    "swin_b_cogcoor": f"{GROUNDING}swin-b_pretrain_mixeddata.py",
    "swin_t_finetune_coco": f"{GROUNDING}swin-t_finetune_16xb2_1x_coco.py",
    "swin_b_finetune_coco": f"{GROUNDING}swin-b_finetune_16xb2_1x_coco.py",
    "one_class": f"{GROUNDING}swin-t_finetune_8xb2_20e_cat.py",
    "mm_swin_t": f"{MM_GROUNDING}grounding_dino_swin-t_pretrain_obj365_goldg_grit9m_v3det.py",
    "mm_swin_b": f"{MM_GROUNDING}grounding_dino_swin-b_pretrain_all.py",
    "mm_swin_l": f"{MM_GROUNDING}grounding_dino_swin-l_pretrain_all.py",
    "mm_swin_t_o365": f"{MM_GROUNDING}grounding_dino_swin-t_pretrain_obj365.py",
    "mm_swin_t_o365_goldg": f"{MM_GROUNDING}grounding_dino_swin-t_pretrain_obj365_goldg.py",
    "mm_swin_t_o365_goldg_grit": f"{MM_GROUNDING}grounding_dino_swin-t_pretrain_obj365_goldg_grit9m.py",
    "mm_swin_t_o365_goldg_v3det": f"{MM_GROUNDING}grounding_dino_swin-t_pretrain_obj365_goldg_v3det.py",
    "mm_swin_b_o365_goldg_v3det": f"{MM_GROUNDING}grounding_dino_swin-b_pretrain_obj365_goldg_v3det.py",
    "mm_swin_l_o365v2_oi_goldg": f"{MM_GROUNDING}grounding_dino_swin-l_pretrain_obj365_goldg.py",
    "mm_swin_t_finetune_coco": f"{MM_GROUNDING}coco/grounding_dino_swin-t_finetune_16xb4_1x_coco.py",
    "mm_swin_t_finetune_coco_retained": f"{MM_GROUNDING}coco/grounding_dino_swin-t_finetune_16xb4_1x_sft_coco.py",
    "mm_swin_t_finetune_lvis": f"{MM_GROUNDING}lvis/grounding_dino_swin-t_finetune_16xb4_1x_lvis.py",
    "mm_swin_t_finetune_refcoco": f"{MM_GROUNDING}refcoco/grounding_dino_swin-t_finetune_8xb4_5e_refcoco.py",
    "mm_swin_t_finetune_refcocoplus": f"{MM_GROUNDING}refcoco/grounding_dino_swin-t_finetune_8xb4_5e_refcoco_plus.py",
    "mm_swin_t_finetune_refcocog": f"{MM_GROUNDING}refcoco/grounding_dino_swin-t_finetune_8xb4_5e_refcocog.py",
    "mm_swin_t_finetune_grefcoco": f"{MM_GROUNDING}refcoco/grounding_dino_swin-t_finetune_8xb4_5e_grefcoco.py",
    "mm_one_class": f"{MM_GROUNDING}grounding_dino_swin-t_finetune_8xb4_20e_cat.py",
}
TRAINED = sorted(set(RECIPES) - {"swin_b_cogcoor"})
IN_EPOCHS = [name for name in TRAINED if load_cfg(name).SOLVER.EPOCHS.MAX]
COCO_TRAINED = [name for name in TRAINED if name == "r50_scratch" or "_finetune_coco" in name]
COCO_PICTURES = 118287
SHIPPED = "grounding_dino://assets/shapes_tiny.safetensors"
OTHER_SHIPPED = {f"grounding_dino://assets/{name}.safetensors" for name in ("shapes_tiny_panoptic", "glip_shapes_tiny")}
AUTHORS_T = "https://github.com/IDEA-Research/GroundingDINO/releases/download/v0.1.0-alpha/groundingdino_swint_ogc.pth"


def read(path):
    return json.loads((REFERENCE / f"{path}.json").read_text())


@pytest.fixture(scope="module")
def recipes():
    return read("mmdet/recipes")


def texts():
    """All configuration files by their path below `configs/`, bases among them."""
    return {str(path.relative_to(CONFIGS)): path.read_text() for path in sorted(CONFIGS.rglob("*.yaml"))}


def published(recipes):
    """Every address that the sources at hand give for weights."""
    documents = [(REFERENCE / folder / "README.md").read_text() for folder in ("dino", "mask_dino")]
    (storage,) = re.findall(r"`(https://\S+)/<file>`", documents[1])
    known = {f"{storage}/{file}" for file in re.findall(r"`(maskdino_\S+\.pth)`", documents[1])}
    known |= {*re.findall(r"`((?:https|detectron2)://\S+\.(?:pth|pkl))`", "".join(documents))}
    for recipe in recipes.values():
        if isinstance(recipe, dict):
            known |= {recipe["url"], recipe["init_from"]}
    return known


@pytest.mark.parametrize("name", list_configs())
def test_leaf_is_short_and_says_what_is_published(name):
    cfg = load_cfg(name)  # refuses unknown keys
    text = Path(get_config_file(name)).read_text()
    assert text.startswith("#")
    if name not in ("shapes_tiny", "shapes_tiny_panoptic", "glip_shapes_tiny"):  # define models of their own
        assert len(text.splitlines()) <= 20
        assert "RELEASE" in text or cfg.MODEL.RELEASE.METRIC


@pytest.mark.parametrize("name", texts())
def test_mappings_are_not_written_twice(name):
    """YAML takes the last of two equal keys without a word."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    yaml.load(texts()[name], Strict)


@pytest.mark.parametrize("name", texts())
def test_every_address_is_in_the_sources(name, recipes):
    model = load_cfg(CONFIGS / name).MODEL
    known = published(recipes) | OTHER_SHIPPED | {"", SHIPPED, AUTHORS_T}
    assert {model.RELEASE.URL, model.WEIGHTS, model.BACKBONE.WEIGHTS} <= known


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize(("name", "manifest", "opts"), FILES)
def test_released_names_and_shapes(name, manifest, opts):
    expected = GeneralizedDINO(load_cfg(name, opts)).state_dict()
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in read(manifest).items()}
    checkpoint = translate_checkpoint({"model": tensors}, manifest)
    state = fit_heads(checkpoint.state, expected)
    assert not checkpoint.unknown
    if checkpoint.origin == "official":  # has no denoising part
        expected = {key: value for key, value in expected.items() if not key.startswith("denoising.")}
    assert {k: tuple(v.shape) for k, v in state.items()} == {k: tuple(v.shape) for k, v in expected.items()}


def test_conversions_of_mmdet_may_lack_the_denoising_part():
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in read(FILES[1][1]).items()}
    assert not translate_checkpoint({"state_dict": tensors}, "trained").absent
    del tensors["dn_query_generator.label_embedding.weight"]
    assert translate_checkpoint({"state_dict": tensors}, "converted").absent == (r"denoising\.",)


@pytest.mark.usefixtures("weightless")
def test_learned_scale_begins_at_one_only_without_class_heads():
    expected = GeneralizedDINO(load_cfg("swin_t_finetune_coco")).state_dict()
    scales = [f"transformer_decoder.class_heads.{i}.log_scale" for i in range(6)] + [
        "query_selection.class_head.log_scale"
    ]
    fitted = fit_heads({}, expected)
    assert sorted(fitted) == sorted(scales) and all(fitted[name] == 0 for name in scales)
    biased = {f"transformer_decoder.class_heads.{i}.bias": torch.zeros(1) for i in range(6)}
    assert fit_heads(biased, expected).keys() == biased.keys()  # of an unknown scale: missing ones are an error


@pytest.mark.parametrize("name", RECIPES)
def test_model_of_the_recipe(name, recipes):
    model, recipe = load_cfg(name).MODEL, recipes[RECIPES[name]]
    if name != "one_class":  # starts from and stays the authors' model
        assert recipe["url"] == (model.RELEASE.URL or None)
        said = {float(number) for number in re.findall(r"\d+\.\d", model.RELEASE.METRIC)}
        figures = [figure for key, figure in (recipe["published_metric"] or {}).items() if key != "epoch"]
        figures = {part for figure in figures for part in (figure if isinstance(figure, list) else [figure])}
        assert said >= figures or name == "swin_b_cogcoor"
        scale, bias = {"auto": "sqrt_dim", None: "none", 0.0: "learned"}[recipe["logit_scale"]], recipe["logit_bias"]
        assert (model.CLASS_HEAD.SCALE, model.CLASS_HEAD.BIAS_ON) == (scale, bias)
        assert model.TRANSFORMER_DECODER.BOX_EPS == (1e-3 if name == "swin_b_cogcoor" else 1e-5)
    assert model.TRANSFORMER_DECODER.REFERENCE_EPS == 1e-3
    assert model.DENOISING.NUM_LABELS == recipe["denoising"]["num_label_embeddings"]
    assert model.PIXEL_DECODER.NUM_FEATURE_LEVELS == recipe["num_feature_levels"]
    assert model.QUERY_SELECTION.NUM_QUERIES == recipe["num_queries"]
    layers = (model.PIXEL_DECODER.NUM_LAYERS, model.TRANSFORMER_DECODER.NUM_LAYERS)
    assert layers == (recipe["encoder_layers"], recipe["decoder_layers"])
    assert model.PIXEL_DECODER.POSITION_TEMPERATURE == recipe["sine_position"]["temperature"]
    assert model.TEXT_ENCODER.MAX_TOKENS == recipe["max_text_len"]
    assert [model.PIXEL_MEAN, model.PIXEL_STD] == [recipe["input"]["mean"], recipe["input"]["std"]]
    if model.BACKBONE.NAME == "SwinTransformer":
        keys = ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE", "DROP_PATH_RATE")
        theirs = ("embed_dims", "depths", "num_heads", "window_size", "drop_path_rate")
        assert [model.SWIN[key] for key in keys] == [recipe["backbone"][key] for key in theirs]
    else:
        assert model.BACKBONE.FREEZE_AT == recipe["frozen"]["backbone_stages"] + 1  # ours counts the stem


@pytest.mark.parametrize("name", RECIPES)
def test_losses_and_denoising_of_the_recipe(name, recipes):
    model, recipe = load_cfg(name).MODEL, recipes[RECIPES[name]]
    theirs = recipe["losses"]
    weights = [theirs[loss]["loss_weight"] for loss in ("loss_cls", "loss_bbox", "loss_iou")]
    assert [model.LOSS[f"{part}_WEIGHT"] for part in ("CLASS", "L1", "GIOU")] == weights
    assert (model.LOSS.FOCAL_ALPHA, model.LOSS.FOCAL_GAMMA) == (
        theirs["loss_cls"]["alpha"],
        theirs["loss_cls"]["gamma"],
    )
    noise = recipe["denoising"]
    assert model.DENOISING.LABEL_NOISE_RATIO == noise["label_noise_scale"]
    assert model.DENOISING.BOX_NOISE_SCALE == noise["box_noise_scale"]
    assert model.DENOISING.NUM_QUERIES == noise["group_cfg"]["num_dn_queries"] and noise["group_cfg"]["dynamic"]
    if name in TRAINED:  # of a model that was only converted, the recipe has no matching
        costs = {cost["type"]: cost["weight"] for cost in recipe["matcher"]}
        ours = {"BinaryFocalLossCost": "CLASS", "BBoxL1Cost": "L1", "IoUCost": "GIOU"}
        assert {cost: model.MATCHER[f"{part}_WEIGHT"] for cost, part in ours.items()} == costs


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_and_numbers_of_detections_of_the_recipe(name, recipes):
    cfg, recipe = load_cfg(name), recipes[RECIPES[name]]
    assert cfg.TEST.DETECTIONS_PER_IMAGE == recipe["test"]["max_per_img"]
    (resize,) = (step for step in pipeline(recipes, recipe["eval_data"][0]) if step["op"] == "resize")
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (resize["short"], resize["long_max"])
    if name not in TRAINED:
        return
    steps = pipeline(recipes, recipe["train_data"][0])
    whole, cropped = next(step["branches"] for step in steps if step["op"] == "one_of_equal_probability")
    for resize in (whole[0], cropped[-1]):
        assert [*cfg.INPUT.MIN_SIZE_TRAIN] == resize["short"] and cfg.INPUT.MAX_SIZE_TRAIN == resize["long_max"]
    crop = next(step for step in cropped if step["op"] == "random_crop")
    assert (cfg.INPUT.CROP.TYPE, [*cfg.INPUT.CROP.SIZE]) == (crop["kind"], crop["side_range"])
    flipped = next(step["prob"] for step in steps if step["op"] == "hflip")
    assert flipped == {"horizontal": 0.5, "none": 0}[cfg.INPUT.RANDOM_FLIP]  # Detectron2's is 0.5


def pipeline(recipes, data):
    return recipes["_pipelines"][data["pipeline"]]


@pytest.mark.parametrize("name", TRAINED)
def test_solver_of_the_recipe(name, recipes):
    cfg, recipe = load_cfg(name), recipes[RECIPES[name]]
    solver, schedule = cfg.SOLVER, recipe["schedule"]
    processes = re.search(r"(\d+)xb(\d+)_5e_", RECIPES[name])  # elsewhere the batch that rates are given for is used
    batch = int(processes[1]) * int(processes[2]) if processes else recipe["base_batch_size"]
    assert (solver.IMS_PER_BATCH, recipe["lr_scaled_to_batch"]) == (batch, False)
    assert (solver.OPTIMIZER, solver.BASE_LR) == ("ADAMW", recipe["optimizer"]["lr"])
    assert {solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM} == {recipe["optimizer"]["weight_decay"]}
    clip = solver.CLIP_GRADIENTS
    assert (clip.CLIP_VALUE, clip.NORM_TYPE) == (recipe["grad_clip"]["max_norm"], recipe["grad_clip"]["norm_type"])
    assert (clip.ENABLED, clip.CLIP_TYPE) == (True, "full_model")
    assert solver.GAMMA == schedule[-1]["gamma"]
    assert solver.AMP.ENABLED == (recipe["mixed_precision"] == "AMP")
    assert solver.WARMUP_ITERS == (schedule[0]["end"] if recipe["warm_up"] else 0)
    if recipe["warm_up"]:
        assert solver.WARMUP_FACTOR == schedule[0]["start_factor"]
    length, milestones = next(iter(recipe["length"].values())), schedule[-1]["milestones"]
    if name in IN_EPOCHS:
        assert (solver.EPOCHS.MAX, list(solver.EPOCHS.STEPS)) == (length, milestones)
    else:
        epoch = math.ceil(COCO_PICTURES / solver.IMS_PER_BATCH) if name in COCO_TRAINED else 1  # 1: in iterations
        assert solver.MAX_ITER == epoch * length
        assert list(solver.STEPS) == [epoch * milestone for milestone in milestones]
    sampling = recipe["negative_sampling"]
    if "refcoco" in name:  # captions have no names to sample
        assert recipe["train_data"][0]["format"].startswith("ODVG jsonl, grounding")
    elif isinstance(sampling, str):  # all names
        assert cfg.INPUT.NUM_NEGATIVE_CATEGORIES == -1
    else:
        ours = (
            cfg.INPUT.NUM_NEGATIVE_CATEGORIES,
            cfg.INPUT.FULL_NEGATIVES_PROBABILITY,
            cfg.MODEL.TEXT_ENCODER.MAX_TOKENS,
        )
        keys = ("num_sample_negative", "prob_full_negatives", "max_tokens")
        assert {ours} == {tuple(step[key] for key in keys) for step in sampling}
        assert cfg.INPUT.SHUFFLE_CATEGORIES_ON
    # The step of mmdet that draws names takes one part of "cup/mug"; captions have no names.
    assert cfg.INPUT.SPLIT_NAMES_ON == (isinstance(sampling, list) and "refcoco" not in name)
    assert cfg.INPUT.CROP.ENABLED


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", TRAINED)
def test_learning_rates_of_the_recipe(name, recipes):
    cfg = load_cfg(name)
    model = GeneralizedDINO(cfg)
    freeze_parameters(cfg, model)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    parts = {"backbone": "backbone", "text_encoder.bert": "language_model"}
    ours, theirs = Counter(), Counter()
    for group in parameter_groups(cfg, model):
        for parameter in group["params"]:
            part = next((parts[part] for part in parts if names[id(parameter)].startswith(part)), "others")
            ours[part, f"{group['lr']:g}", group["weight_decay"]] += 1
    for group in recipes[RECIPES[name]]["resolved_groups"]:
        for part, tensors in group["tensors"].items() if group["lr"] else ():
            part = part if part in parts.values() else "others"
            theirs[part, f"{group['lr']:g}", group["weight_decay"]] += tensors
    if cfg.MODEL.TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON:  # the authors' model: five heads and seven biases fewer
        (others,) = (group for group in theirs if group[0] == "others")
        theirs[others] -= 5 * 6 + 7
    assert ours == theirs


# Files of mmdet, below its folder of data -> the data sets of ours that hold the same pictures, and the same boxes.
SAME_DATA = {
    "objects365v1/o365v1_train_odvg.json": "objects365_v1_train_odvg",
    "objects365v2/annotations/zhiyuan_objv2_train_od.json": "objects365_v2_train_odvg",
    "OpenImages/annotations/oidv6-train-annotations_od.json": "openimages_v6_train_odvg",
    "V3Det/annotations/v3det_2023_v1_train_od.json": "v3det_train_odvg",
    "grit_processed/grit20m_vg.json": "grit_train",
    "grit/grit20m_vg.json": "grit_train",
    "flickr30k_entities/final_flickr_separateGT_train_vg.json": "goldg_flickr_train",
    "gqa/final_mixed_train_no_coco_vg.json": "goldg_mixed_train",
    "coco/mdetr_annotations/final_mixed_train_only_coco_vg.json": "goldg_mixed_coco_train",
    "coco/annotations/instances_train2017.json": "coco_2017_train",
    "coco/annotations/instances_train2017_od.json": "coco_2017_train",
    "coco/annotations/instance_train2017_norefval_od.json": "coco_2017_train_norefval",
    "coco/annotations/instances_val2017.json": "coco_2017_val",
    "coco/annotations/lvis_v1_train_od.json": "lvis_v1_train",
    "coco/annotations/lvis_v1_minival_inserted_image_name.json": "lvis_v1_minival",
    "cat/annotations/trainval.json": "mine_train",
    "cat/annotations/test.json": "mine_val",
}
GRIT_PICTURES = 9e6  # half a million of which are drawn an epoch


def same_data(data):
    file = (data["root"] + data["annotation"]).removeprefix("data/")
    refcoco = re.fullmatch(r"coco/mdetr_annotations/finetune_(\w+\+?)_(train|val|test[AB]?)(_vg)?\.json", file)
    return f"{refcoco[1].replace('+', 'plus')}_{refcoco[2]}" if refcoco else SAME_DATA[file]


@pytest.mark.parametrize("name", TRAINED)
def test_data_of_the_recipe(name, recipes):
    """The same sets in the same order, gone through as often, with pictures that show nothing kept as there."""
    cfg, recipe = load_cfg(name), recipes[RECIPES[name]]
    assert [*cfg.DATASETS.TRAIN] == [same_data(data) for data in recipe["train_data"]]
    assert [*cfg.DATASETS.TEST] == [same_data(data) for data in recipe["eval_data"]]
    assert {data["filter"]["filter_empty_gt"] for data in recipe["train_data"]} == {
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    }
    sampler = recipe["train_sampler"]
    drawn = sampler.get("per_dataset", [-1] * len(recipe["train_data"]))
    pictures = 1 if sampler.get("ratio_mode") else GRIT_PICTURES
    ratios = [
        data.get("repeat", 1) if count == -1 else count / pictures
        for data, count in zip(recipe["train_data"], drawn, strict=True)
    ]
    assert [*cfg.DATASETS.RATIOS] == pytest.approx([] if set(ratios) == {1} else ratios, abs=1e-3)
    oversampled = [same_data(data) for data in recipe["train_data"] if "class_balanced_oversample_thr" in data]
    assert [*cfg.DATALOADER.REPEAT_SETS] in (oversampled, [])
    assert (cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler") == bool(oversampled)
    for data in recipe["train_data"]:
        assert cfg.DATALOADER.REPEAT_THRESHOLD == data.get(
            "class_balanced_oversample_thr", cfg.DATALOADER.REPEAT_THRESHOLD
        )


def test_files_of_the_package_are_found():
    assert local_path(SHIPPED) == str(PACKAGE / "assets" / "shapes_tiny.safetensors")


def test_the_zoo_names_only_known_addresses_and_every_configuration(recipes):
    zoo = (CONFIGS.parent / "MODEL_ZOO.md").read_text()
    addresses = set(re.findall(r"https://\S+\.pth", zoo))
    assert addresses <= published(recipes) | {AUTHORS_T}
    assert {load_cfg(name).MODEL.RELEASE.URL for name in list_configs()} - {""} <= addresses
    missing = [name for name in list_configs() if f"`{name}`" not in zoo]
    assert not missing
