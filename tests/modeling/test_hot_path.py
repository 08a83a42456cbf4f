"""The parts that see every picture: compiled without a break in the graph, and run in buckets of sizes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.model_zoo import build_model, load_cfg
from grounding_dino.modeling import hot_path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build
from torch import nn

SIZES = (128, 160), (100, 70)
CATEGORIES = ["cat", "red dog"]
DINO_OPTS = [
    *(
        "MODEL.DEVICE",
        "cpu",
        "MODEL.EMBED_DIM",
        64,
        "MODEL.BACKBONE.NAME",
        "SwinTransformer",
        "MODEL.SWIN.EMBED_DIM",
        16,
    ),
    *("MODEL.BACKBONE.WEIGHTS", "", "MODEL.SWIN.DEPTHS", [1, 2, 1, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 2]),
    *("MODEL.SWIN.WINDOW_SIZE", 4, "MODEL.PIXEL_DECODER.IN_FEATURES", ["stage2", "stage3", "stage4"]),
    *("MODEL.PIXEL_DECODER.NUM_LAYERS", 1, "MODEL.PIXEL_DECODER.NUM_HEADS", 2, "MODEL.PIXEL_DECODER.FFN_DIM", 32),
    *("MODEL.TRANSFORMER_DECODER.NUM_LAYERS", 2, "MODEL.TRANSFORMER_DECODER.NUM_HEADS", 2),
    *("MODEL.TRANSFORMER_DECODER.FFN_DIM", 32, "MODEL.QUERY_SELECTION.NUM_QUERIES", 12),
]


@pytest.fixture
def grounding_dino_model(tiny_cfg: CfgNode) -> Any:
    """Wide enough for maps of one cell, whose groups in GroupNorm would hold one value."""
    tiny_cfg.MODEL.EMBED_DIM = 64
    return _spread(build(tiny_cfg))


@pytest.fixture
def dino_model() -> Any:
    return _spread(build(load_cfg("dino/r50_4scale_12ep", DINO_OPTS)))


@pytest.fixture
def mask_dino_model(tiny_mask_cfg: CfgNode) -> Any:
    return _spread(build(tiny_mask_cfg))


def _spread(model: nn.Module) -> nn.Module:
    """`model` to detect with, with queries that differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("box_head", "sampling_offsets.weight", "attention_weights.weight")):
                parameter.normal_(std=0.2)
    return model.eval()


def _answers(model: Any, sizes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """Scores and boxes, as shares of its longer side, of each picture."""
    asked = {} if model.text_encoder is None else {"categories": CATEGORIES}
    generator = torch.Generator().manual_seed(0)
    batch = [{"image": torch.randint(256, (3, *size), generator=generator), **asked} for size in sizes]
    with torch.no_grad():
        found = [answer["instances"] for answer in model(batch)]
    return [part for each in found for part in (each.scores, each.pred_boxes.tensor / max(each.image_size))]


@pytest.fixture
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing compiled before. While someone listens to its trace, as pytest does, it writes out every graph."""
    torch._dynamo.reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["grounding_dino_model", "dino_model", "mask_dino_model", "tiny_glip"])
def test_compiles_without_a_break(family: str, request: pytest.FixtureRequest, fresh_compiler: None) -> None:
    """`fullgraph` makes a break an error. Mask DINO cuts maps to each picture of a batch on the host: one picture."""
    model = request.getfixturevalue(family)
    sizes = SIZES[:1] if family == "mask_dino_model" else SIZES
    wanted = _answers(model, sizes)
    names = list(model.state_dict())
    parts = hot_path.compile_parts(model, backend="eager", fullgraph=True)
    assert parts == [name for name in hot_path.PARTS if hasattr(model, name)] and len(parts) >= 4
    torch.testing.assert_close(_answers(model, sizes), wanted, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_machine_code_for_the_cpu_gives_the_same(grounding_dino_model: Any, fresh_compiler: None) -> None:
    wanted = _answers(grounding_dino_model, SIZES)
    hot_path.compile_parts(grounding_dino_model, fullgraph=True)
    torch.testing.assert_close(_answers(grounding_dino_model, SIZES), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["grounding_dino_model", "dino_model"])
@pytest.mark.parametrize(
    "sizes", [SIZES[:1], SIZES, [(97, 131), (97, 131)], [(32, 40)]], ids=["one", "padded", "equal", "small"]
)
def test_buckets_change_nothing(family: str, sizes: Any, request: pytest.FixtureRequest, graph_capture: Any) -> None:
    model = request.getfixturevalue(family)
    wanted = _answers(model, sizes)
    hot_path.use_cuda_graphs(model)
    for _ in range(3):  # as it is, captured, replayed
        torch.testing.assert_close(_answers(model, sizes), wanted, rtol=1e-4, atol=1e-5)
    assert graph_capture.captures >= 2 and graph_capture.replays > graph_capture.captures


def test_pictures_of_near_sizes_share_a_graph(grounding_dino_model: Any, graph_capture: Any) -> None:
    model = grounding_dino_model
    sizes = [(150, 250), (190, 200), (160, 256)]
    wanted = [_answers(model, [size]) for size in sizes]
    hot_path.use_cuda_graphs(model)
    for size, answers in zip(sizes, wanted):
        torch.testing.assert_close(_answers(model, [size]), answers, rtol=1e-4, atol=1e-5)
    assert len(model.find.graphs) == 1 and len(model._project) == 0  # their backbones' sizes came once each


@pytest.mark.parametrize("family", ["grounding_dino_model", "dino_model"])
def test_buckets_differ_by_rounding_alone(
    family: str, request: pytest.FixtureRequest, graph_capture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a difference is left in float64. The places of tokens are float32 in any model; maps of 1, 2, 4 and 8
    cells have places, and shares of their bucket's 8, 4, 2 and 1, that float32 holds."""
    model = request.getfixturevalue(family).double()
    sizes = [(32, 32), (32, 64), (64, 32)]

    def found() -> list[torch.Tensor]:
        outputs, find = [], model.find
        with monkeypatch.context() as patch:
            patch.setitem(model.__dict__, "find", lambda *inputs: outputs.append(find(*inputs)) or outputs[-1])
            for size in sizes:
                _answers(model, [size])
        return [part for o in outputs for p in o.layers for part in (p.pred_logits, p.pred_boxes)]

    wanted = found()
    hot_path.use_cuda_graphs(model)
    again = found()
    assert len(model.find.graphs) == 1 and again[0].dtype == torch.float64
    torch.testing.assert_close(again, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("family", "size"), [("grounding_dino_model", (16, 24)), ("mask_dino_model", SIZES[0])], ids=["few tokens", "masks"]
)
def test_pictures_of_few_tokens_and_masks_keep_their_sizes(
    family: str, size: tuple[int, int], request: pytest.FixtureRequest, graph_capture: Any
) -> None:
    """(16, 24) pixels are 10 tokens of four levels, fewer than the 12 queries: the others' number is the bucket's."""
    model = request.getfixturevalue(family)
    wanted = _answers(model, [size])
    hot_path.use_cuda_graphs(model)
    for _ in range(3):
        assert all(map(torch.equal, _answers(model, [size]), wanted))
    assert len(model.find.graphs) == 0 and len(model._project) == 1


def test_glip_is_replayed_too(tiny_glip: Any, graph_capture: Any) -> None:
    wanted = _answers(tiny_glip, [(64, 96)])
    hot_path.use_cuda_graphs(tiny_glip)
    for _ in range(3):
        torch.testing.assert_close(_answers(tiny_glip, [(64, 96)]), wanted)
    assert (len(tiny_glip.extract_features), len(tiny_glip.head_outputs)) == (1, 1)


@pytest.mark.parametrize("key", ["TEST.COMPILE_ON", "TEST.CUDA_GRAPHS_ON"])
def test_the_configuration_switches_them_on(key: str, tiny_cfg: CfgNode, tmp_path: Path) -> None:
    plain = build_model(tiny_cfg)
    tiny_cfg.merge_from_list([key, True])
    model: Any = build_model(tiny_cfg)
    for each, is_on in ((plain, False), (model, True)):
        of_key = each.backbone._compiled_call_impl if key == "TEST.COMPILE_ON" else each.__dict__.get("find")
        assert (of_key is not None) is is_on
    assert not model.training and list(model.state_dict()) == list(plain.state_dict())
