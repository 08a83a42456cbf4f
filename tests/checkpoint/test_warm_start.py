"""Warm starts between DINO, Mask DINO and Grounding DINO: what is taken, selected, new and dropped."""

import logging
import re

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.loading import load_weights
from grounding_dino.checkpoint.origins import load_checkpoint
from grounding_dino.checkpoint.report import abbreviated, part_of
from grounding_dino.checkpoint.saving import save_checkpoint

import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

IDS = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
DINO = {
    "TEXT_ENCODER.NAME": "",
    "CLASS_HEAD.NAME": "Linear",
    "CLASS_HEAD.SHARED_ON": True,
    "CLASS_HEAD.NUM_CLASSES": 91,
    "CLASS_HEAD.CATEGORY_IDS": IDS,
    "DENOISING.NUM_LABELS": 92,
}
MASK_DINO = {
    **DINO,
    "MASK_ON": True,
    "MASK_HEAD.IN_FEATURE": "stage1",
    "MASK_HEAD.EMBED_DIM": 32,
    "SWIN.OUT_FEATURES": ["stage1", "stage2", "stage3", "stage4"],
    "QUERY_SELECTION.CONTENT": "selected",
    "QUERY_SELECTION.SHARED_HEADS_ON": True,
    "TRANSFORMER_DECODER.NUM_LAYERS": 3,
    "CLASS_HEAD.NUM_CLASSES": 80,
    "CLASS_HEAD.CATEGORY_IDS": [],
    "DENOISING.NUM_LABELS": 80,
}


@pytest.fixture(scope="module")
def dino(make_model):
    return make_model(**DINO)


@pytest.fixture(scope="module")
def mask_dino(make_model):
    return make_model(**MASK_DINO)


@pytest.fixture
def file_of(tmp_path):
    """`file_of(model, to="official")`: the model's checkpoint in the format."""

    def write(model, to="official"):
        save_checkpoint(str(tmp_path / "source.pth"), model.state_dict(), to=to)
        return tmp_path / "source.pth"

    return write


def parts(names):
    return {part_of(name) for name in names}


@pytest.mark.parametrize("to", ["ours", "official", "mmdet"])
def test_strict_through_files_of_dino(file_of, make_model, dino, to):
    other = make_model(**DINO)
    report = load_weights(other, file_of(dino, to))
    assert report.origin == to and not report.new and not report.dropped
    assert all(torch.equal(value, dino.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"PIXEL_DECODER.NUM_FEATURE_LEVELS": 3}])
@pytest.mark.parametrize("to", ["ours", "official"])
def test_strict_through_files_of_mask_dino(file_of, make_model, to, changes):
    model = make_model(**{**MASK_DINO, **changes})
    other = make_model(**{**MASK_DINO, **changes})
    report = load_weights(other, file_of(model, to))
    assert report.origin == to and not report.new and not report.dropped
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_learned_queries_through_the_authors_file(file_of, make_model):
    changes = {**MASK_DINO, "QUERY_SELECTION.NAME": "LearnedQueries", "LOSS.CLASS": "cross_entropy"}
    model, other = make_model(**changes), make_model(**changes)
    load_weights(other, file_of(model))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


def test_dino_into_mask_dino(file_of, make_model, dino, caplog):
    other = make_model(**MASK_DINO)
    path = file_of(dino)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_weights(other, path)
    with caplog.at_level(logging.INFO):
        report = load_weights(other, path, warm_start=True)
    ours, theirs = other.state_dict(), dino.state_dict()
    assert parts(report.taken) >= {"backbone", "input_projection", "pixel_decoder.layers", "transformer_decoder.layers"}
    assert not report.misshapen
    decoder = r"pixel_decoder\.mask_features|transformer_decoder\.(mask_head|layers\.2)\."
    new = rf"backbone\.norms\.stage1|input_projection\.mask_map|{decoder}"
    assert all(re.match(new, name) for name in report.new)
    assert parts(report.dropped) == {
        "query_selection.content",
        "query_selection.class_head",
        "query_selection.box_head",
    }
    heads = {f"transformer_decoder.class_heads.0.{leaf}" for leaf in ("weight", "bias")}
    assert set(report.selected) == {*heads, "denoising.label_embedding.weight"}
    for name in report.taken:
        assert torch.equal(ours[name], theirs[name][IDS] if name in report.selected else theirs[name]), name
    (record,) = caplog.records
    assert "the rows of COCO's 80 category ids" in record.message


def test_dino_of_mmdet_into_mask_dino(file_of, make_model):
    """80 classes in COCO's order: nothing has to be selected; of heads for every layer the first is taken."""
    mmdets = {
        **DINO,
        "CLASS_HEAD.SHARED_ON": False,
        "TRANSFORMER_DECODER.SHARED_BOX_HEAD_ON": False,
        "PIXEL_DECODER.PROJECTION_BIAS_ON": False,
        "CLASS_HEAD.NUM_CLASSES": 80,
        "CLASS_HEAD.CATEGORY_IDS": [],
        "DENOISING.NUM_LABELS": 80,
    }
    model, other = make_model(**mmdets), make_model(**MASK_DINO)
    report = load_weights(other, file_of(model, "mmdet"), warm_start=True)
    assert not report.selected and not report.misshapen
    assert "transformer_decoder.class_heads.0.weight" in report.taken
    assert "denoising.label_embedding.weight" in report.taken
    assert {name for name in report.new if name.startswith("input_projection.0.")} == {"input_projection.0.0.bias"}


def test_mask_dino_into_grounding_dino(file_of, make_model, mask_dino):
    """The shared parts; the box head that also selects queries fills the selection's own."""
    other = make_model()
    report = load_weights(other, file_of(mask_dino), warm_start=True)
    ours, theirs = other.state_dict(), mask_dino.state_dict()
    text = r"text_encoder\.|.*\.(text_layer|fusion|text_attention|norm_text)\.|query_selection\.content\."
    assert all(re.match(text, name) for name in report.new)
    assert [name.split(" ")[0] for name in report.misshapen] == ["denoising.label_embedding.weight"]
    for name in report.taken:
        source = name.replace("query_selection.box_head", "transformer_decoder.box_heads.0")
        assert torch.equal(ours[name], theirs[source]), name
    assert "query_selection.box_head.layers.2.bias" in report.taken
    assert {name.split(".")[2] for name in report.dropped if name.startswith("transformer_decoder.layers")} == {"2"}


def test_dino_into_grounding_dino(file_of, make_model, dino):
    report = load_weights(make_model(), file_of(dino), warm_start=True)
    text = r"text_encoder\.|.*\.(text_layer|fusion|text_attention|norm_text)\."
    assert all(re.match(text, name) for name in report.new)
    assert parts(report.dropped) == {"query_selection.class_head", "transformer_decoder.class_heads"}


@pytest.mark.parametrize("classes", [3, 80, 91, 120])
def test_fine_tuning_drops_class_heads_and_labels_alone(file_of, make_model, dino, caplog, classes):
    """And one line says so. 80 classes are COCO's, of which the rows are selected."""
    changes = {"CLASS_HEAD.NUM_CLASSES": classes, "CLASS_HEAD.CATEGORY_IDS": [], "DENOISING.NUM_LABELS": classes + 1}
    path = file_of(dino)
    other = make_model(**{**DINO, **changes})
    with caplog.at_level(logging.INFO):
        report = load_weights(other, path, warm_start=True)
    assert not report.new and not report.dropped
    misshapen = [text.split(" ")[0] for text in report.misshapen]
    heads = {
        f"{head}.{leaf}"
        for head in ("query_selection.class_head", "transformer_decoder.class_heads.0")
        for leaf in ("weight", "bias")
    }
    labels = "denoising.label_embedding.weight"
    expected = {3: {*heads, labels}, 80: {labels}, 91: set(), 120: {*heads, labels}}[classes]
    assert set(misshapen) == expected
    assert set(report.selected) == (heads if classes == 80 else set())
    (record,) = caplog.records
    assert all(name in record.message for name in misshapen) and "\n" not in record.message
    untouched = set(other.state_dict()) - expected - set(report.selected)
    assert all(torch.equal(other.state_dict()[name], dino.state_dict()[name]) for name in untouched)


def test_files_of_ours_know_their_model(file_of, dino, mask_dino):
    assert load_checkpoint(str(file_of(dino, "ours"))).model == "dino"
    assert load_checkpoint(str(file_of(mask_dino, "ours"))).model == "mask_dino"


def test_names_are_abbreviated():
    names = ["a.layers.6.b", "a.layers.7.b", "a.layers.6.c", "d", "e.0.f.1.g", "a.0.x", "a.2.x"]
    assert abbreviated(names) == ["a.layers.{6..7}.b", "a.layers.6.c", "d", "e.0.f.1.g", "a.{0,2}.x"]
    assert [part_of(name) for name in ("backbone.res2.x", "input_projection.0.1.x", "a.layers.6.b", "a.b")] == [
        "backbone",
        "input_projection",
        "a.layers",
        "a",
    ]
