"""Configurations by name, their weights, and the device."""

from __future__ import annotations

from grounding_dino.model_zoo import (
    AUTHORS_CONFIGS,
    build_model,
    config_folders,
    find_weights,
    get_cfg,
    get_config_file,
    list_configs,
    load_cfg,
    resolve_device,
)
from grounding_dino.predictor import load_predictor

import pytest
import torch


def test_configurations_by_name(tmp_path):
    assert "shapes_tiny" in list_configs() and "swin_t_ogc" in list_configs()
    path = get_config_file("swin_t_ogc")
    assert path == get_config_file("grounding_dino/swin_t_ogc.yaml") == get_config_file(path)
    assert path == get_config_file("groundingdino/config/GroundingDINO_SwinT_OGC.py")
    with pytest.raises(FileNotFoundError, match="swin_t_ogc"):
        get_config_file("swin_t_ogx")
    with pytest.raises(ValueError, match="not executed"):
        get_config_file("my_config.py")
    (tmp_path / "own.yaml").write_text(f"_BASE_: {path}\nINPUT:\n  MIN_SIZE_TEST: 77\n")
    assert load_cfg(tmp_path / "own.yaml").INPUT.MIN_SIZE_TEST == 77


def test_a_short_name_is_one_configuration():
    """Files of several folders may share a name, which is then given with its folder."""
    names = list_configs()
    assert {"ade20k/r50_semantic", "cityscapes/r50_semantic", "r50_instance"} <= {
        *names
    } and "r50_semantic" not in names
    files = {get_config_file(name) for name in names}
    every = {str(file) for file in config_folders()[0].rglob("*.yaml") if not file.name.startswith("Base-")}
    assert files == every and len(names) == len(every)
    assert load_cfg("dino/r50_4scale_12ep") == load_cfg("r50_4scale_12ep")
    with pytest.raises(ValueError, match=r"mask_dino/ade20k/r50_semantic.yaml, mask_dino/cityscapes/r50_semantic.yaml"):
        load_cfg("r50_semantic")
    with pytest.raises(FileNotFoundError, match="ade20k/r50_semantic"):
        load_cfg("r50_semantc")


@pytest.mark.parametrize("name", ["ade20k/r50_semantic", "configs/mask_dino/cityscapes/r50_semantic.yaml", "glip_t"])
def test_released_weights_of_names_with_folders(name):
    cfg = load_cfg(name)
    assert cfg.MODEL.RELEASE.URL and find_weights(cfg, name) == cfg.MODEL.RELEASE.URL
    assert find_weights(load_cfg(name, ["MODEL.WEIGHTS", "own.pth"]), name) == "own.pth"


def test_get_cfg_has_both_projects_keys():
    cfg = get_cfg()
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedDINO" and cfg.DATALOADER.NUM_WORKERS == 4
    copy = load_cfg(cfg, ["MODEL.EMBED_DIM", 32])
    assert copy.MODEL.EMBED_DIM == 32 and cfg.MODEL.EMBED_DIM == 256


def test_device_without_a_flag(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == resolve_device("cpu") == resolve_device("cuda", fallback=True) == "cpu"
    with pytest.raises(ValueError, match="no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(None) == "cuda"


def test_missing_weights_are_a_sentence(monkeypatch):
    cfg = get_cfg()
    with pytest.raises(FileNotFoundError, match="no weights are known"):
        find_weights(cfg, "no_such_model")
    cfg.MODEL.RELEASE.URL = "https://example.com/a.pth"
    assert find_weights(cfg, "no_such_model") == "https://example.com/a.pth"


def test_shipped_weights_come_before_released_ones(monkeypatch, tmp_path):
    monkeypatch.setattr("grounding_dino.model_zoo.ASSETS", tmp_path)
    (tmp_path / "small.safetensors").touch()
    cfg = get_cfg()
    cfg.MODEL.RELEASE.URL = "https://example.com/a.pth"
    assert find_weights(cfg, "configs/small.yaml") == str(tmp_path / "small.safetensors")
    cfg.MODEL.WEIGHTS = "own.pth"
    assert find_weights(cfg, "small") == "own.pth"


def test_a_shipped_model_comes_before_the_start_of_its_training(monkeypatch, tmp_path):
    name = "grounding_dino/shapes_tiny_finetune"
    start = load_cfg(name).MODEL.WEIGHTS
    assert start and find_weights(load_cfg(name), name) == start
    monkeypatch.setattr("grounding_dino.model_zoo.ASSETS", tmp_path)
    (tmp_path / "shapes_tiny_finetune.safetensors").touch()
    assert find_weights(load_cfg(name), name) == str(tmp_path / "shapes_tiny_finetune.safetensors")


def test_names_with_folders_find_their_weights():
    for name in ("mask_dino/coco/r50_panoptic", "coco/r50_panoptic", "r50_panoptic.yaml"):
        cfg = load_cfg(name)
        assert find_weights(cfg, name) == cfg.MODEL.RELEASE.URL and "panoptic" in cfg.MODEL.RELEASE.URL
    assert find_weights(load_cfg("shapes_tiny"), "grounding_dino/shapes_tiny").endswith("shapes_tiny.safetensors")
    with pytest.raises(FileNotFoundError, match="'dino/r50_4scale_12ep'.*MODEL_ZOO.md"):
        find_weights(load_cfg("dino/r50_4scale_12ep"), "dino/r50_4scale_12ep")


@pytest.mark.parametrize("name", ["swin_t_finetune_coco", "glip_t_finetune_coco"])
def test_named_weights_win_over_released_ones(name):
    """A recipe's MODEL.WEIGHTS are what its training starts from; who names the same file gets that file."""
    recipe = load_cfg(name)
    start, released = recipe.MODEL.WEIGHTS, recipe.MODEL.RELEASE.URL
    assert start and released and start != released
    assert find_weights(recipe, name) == released
    for config in (name, get_config_file(name)):
        assert find_weights(load_cfg(config, ["MODEL.EMBED_DIM", 64]), config, ["MODEL.EMBED_DIM", 64]) == released
        assert find_weights(load_cfg(config, ["MODEL.WEIGHTS", start]), config, ("MODEL.WEIGHTS", start)) == start
    assert find_weights(recipe) == start, "of a configuration of unknown origin"


def test_the_predictor_takes_the_weights_that_are_named(monkeypatch):
    taken = []
    monkeypatch.setattr("grounding_dino.predictor.GroundingPredictor", lambda cfg: taken.append(cfg.MODEL.WEIGHTS))
    recipe = load_cfg("swin_t_finetune_coco")
    start, released = recipe.MODEL.WEIGHTS, recipe.MODEL.RELEASE.URL
    load_predictor("swin_t_finetune_coco", device="cpu")
    load_predictor("swin_t_finetune_coco", device="cpu", opts=["MODEL.WEIGHTS", start])
    load_predictor("swin_t_finetune_coco", start, "cpu")
    load_predictor(recipe, device="cpu")
    assert taken == [released, start, start, start]


def test_a_built_model_evaluates_on_a_machine_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = build_model(load_cfg("shapes_tiny", ["MODEL.DEVICE", "cuda", "MODEL.TEXT_ENCODER.NUM_LAYERS", 1]))
    assert not model.training and model.device.type == "cpu"


def test_the_authors_configurations_are_known():
    assert set(AUTHORS_CONFIGS.values()) <= set(list_configs())
    assert get_config_file("x/GroundingDINO_SwinB.cfg.py").endswith("swin_b_cogcoor.yaml")
