"""Folders of `transformers`, written there and read here, and the other way round."""

import json
import sys
import types

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError, read_checkpoint_file
from grounding_dino.checkpoint.huggingface import HeadCounts, save_huggingface_folder
from grounding_dino.checkpoint.loading import load_weights
from grounding_dino.checkpoint.origins import load_checkpoint, translate_checkpoint

import pytest
import torch
from transformers import (
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
)

HEADS = HeadCounts(num_points=4, decoder_heads=2, text_encoder_heads=2)
NO_PROBLEMS = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
CASES = {
    "shared": (GroundingDinoConfig, GroundingDinoForObjectDetection, {}),
    "separate": (GroundingDinoConfig, GroundingDinoForObjectDetection, {"decoder_bbox_embed_share": False}),
    "mm shared": (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection, {}),
    "mm five levels": (
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
        {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False, "num_feature_levels": 5},
    ),
}


def theirs(name):
    config_class, model_class, options = CASES[name]
    outputs = [1, 2, 3, 4] if options.get("num_feature_levels") == 5 else [2, 3, 4]
    swin = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 3, 6], "out_indices": outputs}
    bert = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = {"d_model": 32, "num_queries": 10}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 64}
    config = config_class(
        backbone_config={"model_type": "swin", **swin}, text_config={"model_type": "bert", **bert}, **sizes, **options
    )
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=CASES)
def written(request, tmp_path_factory):
    """(their model, the folder they wrote)"""
    model = theirs(request.param)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


def test_their_folder_comes_back_and_loads_there(written, tmp_path):
    model, folder = written
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.origin == "huggingface" and not checkpoint.unknown
    save_huggingface_folder(str(tmp_path), checkpoint.state, checkpoint.extras, heads=HEADS)
    before, after = read_checkpoint_file(str(folder)), read_checkpoint_file(str(tmp_path))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    again, problems = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert problems == NO_PROBLEMS
    states = model.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_their_configuration_comes_back(written, tmp_path):
    model, folder = written
    checkpoint = load_checkpoint(str(folder))
    save_huggingface_folder(str(tmp_path), checkpoint.state, checkpoint.extras, heads=HEADS)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    for config in (before, after):
        for part in (config, config["backbone_config"], config["text_config"]):
            part.pop("dtype", None)
    assert before == after


def test_in_memory_names_are_read_too(written):
    model, folder = written
    from_disk, from_memory = load_checkpoint(str(folder)), translate_checkpoint(model.state_dict(), "memory")
    assert not from_memory.unknown
    assert all(torch.equal(from_memory.state[name], value) for name, value in from_disk.state.items())
    extra = from_memory.state.keys() - from_disk.state.keys()
    assert all("_heads.1." in name for name in extra)  # shared heads, under both their names


@pytest.mark.parametrize("mm", [False, True])
def test_our_model_loads_there_and_comes_back(tmp_path, make_model, mm):
    ours = make_model(mm=mm)
    state = ours.state_dict()
    save_huggingface_folder(str(tmp_path), state, heads=HEADS)
    model_class = MMGroundingDinoForObjectDetection if mm else GroundingDinoForObjectDetection
    theirs, problems = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert problems == NO_PROBLEMS
    assert torch.equal(theirs.model.level_embed, state["pixel_decoder.level_embed"])
    assert theirs.config.decoder_bbox_embed_share is not mm
    other = make_model(mm=mm)
    report = load_weights(other, tmp_path)
    assert not report.new and not report.dropped  # what only we train with lies beside their file
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_a_folder_they_wrote_loads_into_our_model(tmp_path, make_model):
    model = theirs("shared")
    model.save_pretrained(tmp_path)
    ours = make_model()
    report = load_weights(ours, tmp_path)
    assert report.new == ("denoising.label_embedding.weight",) and not report.dropped
    assert torch.equal(ours.query_selection.content.weight, model.model.query_position_embeddings.weight)
    query = model.model.decoder.layers[1].self_attn.query.weight
    assert torch.equal(ours.transformer_decoder.layers[1].self_attention.in_proj.weight[:32], query)


def test_half_precision_folder(tmp_path, make_model):
    ours = make_model()
    save_huggingface_folder(str(tmp_path), ours.state_dict(), half=True, heads=HEADS)
    model = GroundingDinoForObjectDetection.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    assert torch.equal(model.model.level_embed, ours.pixel_decoder.level_embed.half())


def test_the_processor_knows_its_words(tmp_path, make_model):
    save_huggingface_folder(str(tmp_path), make_model().state_dict(), heads=HEADS)
    processor = GroundingDinoProcessor.from_pretrained(tmp_path)
    assert processor.tokenizer("a cat. a dog.").input_ids == [101, 1037, 4937, 1012, 1037, 3899, 1012, 102]
    assert processor.image_processor.size == {"shortest_edge": 800, "longest_edge": 1333}


@pytest.mark.parametrize("installed", [None, types.ModuleType("transformers")], ids=["none", "too old"])
def test_without_transformers_the_error_says_so(tmp_path, make_model, monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "transformers", installed)
    with pytest.raises(CheckpointError, match="needs the package transformers, 4.56 or newer.*pip install"):
        save_huggingface_folder(str(tmp_path / "a"), make_model().state_dict())
    assert not (tmp_path / "a").exists()


def test_models_that_transformers_cannot_express(tmp_path, make_model):
    wide = make_model(**{"PIXEL_DECODER.TEXT_LAYER.FFN_DIM": 48})
    with pytest.raises(CheckpointError, match=r"half as wide.*\[32, 48\]"):
        save_huggingface_folder(str(tmp_path / "a"), wide.state_dict())
    scaled = make_model(**{"CLASS_HEAD.SCALE": "learned"})
    with pytest.raises(CheckpointError, match="log_scale"):
        save_huggingface_folder(str(tmp_path / "a"), scaled.state_dict())
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())
