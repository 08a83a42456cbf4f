"""The cost of models: counts by hand, parts that add up, figures beside the published ones."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.analysis.flops import FlopCounts, count_flops
from grounding_dino.analysis.memory import measure_activations
from grounding_dino.analysis.parts import PARTS, count_parameters, part_of
from grounding_dino.analysis.published import PUBLISHED, published_cost
from grounding_dino.cli.analyze_model import build_parser, main, report
from grounding_dino.layers.blocks import MultiheadAttention
from grounding_dino.layers.ms_deform_attn import MSDeformAttn
from grounding_dino.model_zoo import get_config_file, list_configs, load_cfg
from grounding_dino.modeling.dense_head.dynamic_conv import DeformableBranch

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

ARGUMENTS = ["--size", "64x96", "--categories", "cat", "traffic light"]
# Operators that move data or look at a few numbers.
MOVING = {
    *("unflatten", "meshgrid", "embedding", "flip", "repeat", "numpy_T", "resolve_conj", "resolve_neg", "mT", "topk"),
    *("index_fill_", "pad", "fill_", "masked_fill_", "all", "any", "numel", "sort", "argsort", "clone", "where"),
    *("nonzero_numpy", "expand_as", "nms", "lift_fresh"),
}


class _Layers(nn.Module):
    """Takes pictures as the project's models do, and calls a few layers in the names of their parts."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1, groups=1)
        self.input_projection = nn.Linear(8, 16)
        self.pixel_decoder = MSDeformAttn(16, 1, 4, 2)
        self.query_selection = MultiheadAttention(16, 4)
        self.transformer_decoder = nn.LayerNorm(16)

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        maps = self.backbone(torch.stack([inputs["image"] for inputs in batched_inputs]))
        batch, _, height, width = maps.shape
        tokens = self.input_projection(maps.flatten(2).transpose(1, 2))
        shapes, start = torch.tensor([[height, width]]), torch.tensor([0])
        references = torch.full((batch, height * width, 1, 2), 0.5)
        tokens = self.pixel_decoder(tokens, references, tokens, shapes, start)
        few, all_ = tokens[:, :5], tokens
        found = self.transformer_decoder(self.query_selection(few, all_, all_))
        return [{"sem_seg": row @ row.mT} for row in found]


@pytest.fixture(scope="module")
def layers() -> tuple[nn.Module, list[dict[str, Tensor]]]:
    return _Layers().eval(), [{"image": torch.rand(3, 12, 20)} for _ in range(2)]


@pytest.fixture(scope="module")
def by_hand() -> dict[tuple[str, str], int]:
    batch, tokens = 2, 6 * 10
    project = batch * tokens * 16
    return {
        ("backbone", "conv"): batch * tokens * 8 * (3 * 3 * 3),
        ("input projection", "linear"): batch * tokens * 8 * 16,
        # values and output 16 -> 16, offsets 16 -> 4 heads * 2 points * 2, weights 16 -> 4 * 2
        ("encoder", "linear"): project * (16 + 16 + 16 + 8),
        # of 4 heads with 4 channels: 2 points, each of 4 neighbours and a weight
        ("encoder", "ms_deform_attn"): batch * tokens * 4 * 2 * 4 * 5,
        # 5 queries, keys and values of all tokens, output of 5
        ("query selection", "linear"): batch * (5 + tokens + tokens + 5) * 16 * 16,
        ("query selection", "scaled_dot_product_attention"): batch * 5 * tokens * (16 + 16),
        ("heads and masks", "layer_norm"): batch * 5 * 16 * 5,
        ("postprocessing", "matmul"): batch * 5 * 16 * 5,
    }


def test_multiply_adds_by_hand(
    layers: tuple[nn.Module, list[dict[str, Tensor]]], by_hand: dict[tuple[str, str], int]
) -> None:
    flops = count_flops(*layers)
    counts = dict(flops.multiply_adds)
    if ("encoder", "grid_sampler") in counts:  # no kernels: the twin's sampling, its weights are elementwise
        counts["encoder", "ms_deform_attn"] = counts.pop(("encoder", "grid_sampler")) * 5 // 4
    assert counts == by_hand
    assert flops.total() == sum(flops.multiply_adds.values()) == sum(flops.total(part) for part in PARTS)
    assert flops.total(without=("linear",)) == sum(n for (_, name), n in by_hand.items() if name != "linear")
    assert sum(flops.by_operator().values()) == flops.total()


def test_bytes_of_outputs_by_hand(layers: tuple[nn.Module, list[dict[str, Tensor]]]) -> None:
    activations = measure_activations(*layers)
    batch, tokens = 2, 6 * 10
    assert activations.made["backbone"] == 4 * batch * 8 * tokens
    assert activations.made["postprocessing"] == 4 * batch * 5 * 5
    assert activations.made["heads and masks"] >= 4 * batch * 5 * 16
    assert max(activations.made.values()) <= activations.peak <= sum(activations.made.values())


def test_memory_that_is_freed_is_not_held() -> None:
    class Chain(nn.Module):
        def forward(self, batched_inputs: list[dict[str, Tensor]]) -> None:
            x = batched_inputs[0]["image"]
            for _ in range(10):
                x = x + 1
                x.view(-1).mul_(2)  # a view and an in-place operation take nothing

    activations = measure_activations(Chain(), [{"image": torch.zeros(1000)}])
    assert activations.made == {"preprocessing": 10 * 4000}
    assert activations.peak == 2 * 4000


def test_parameters_belong_to_one_part_each(tiny_model: nn.Module) -> None:
    tiny_model.backbone.requires_grad_(False)
    counts = count_parameters(tiny_model)
    assert sum(c.total for c in counts.values()) == sum(p.numel() for p in tiny_model.parameters())
    assert counts["backbone"].total == sum(p.numel() for p in tiny_model.backbone.parameters())
    assert counts["backbone"].trainable == 0
    assert counts["decoder"].trainable == counts["decoder"].total > 0


def test_a_parameter_of_no_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"neck\.weight belongs to no part"):
        count_parameters(nn.ModuleDict({"neck": nn.Linear(1, 1)}))


def test_the_part_is_that_of_the_running_modules() -> None:
    assert part_of(["", "query_selection", "transformer_decoder.class_heads.0"]) == "query selection"
    assert part_of(["", "transformer_decoder", "transformer_decoder.class_heads.0"]) == "heads and masks"
    assert part_of(["", "transformer_decoder", "transformer_decoder.layers.1"]) == "decoder"
    assert part_of(["pixel_decoder.mask_features.output.0.weight"]) == "mask features"
    assert part_of(["input_projection.mask_map"]) == "input projection"
    assert part_of([""]) is None


@pytest.fixture
def tiny_file(tiny_cfg: CfgNode, tmp_path: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny_cfg.dump())
    return str(file)


def test_table_and_numbers(tiny_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "cost.json"
    assert main(["--config-file", tiny_file, *ARGUMENTS, "--batch", "2", "--json", str(output)]) == 0
    printed, record = capsys.readouterr().out, json.loads(output.read_text())
    assert record["size"] == [64, 96] and record["batch"] == 2 and record["categories"] == 2
    parts = record["parts"]
    assert set(parts) == set(PARTS) - {"mask features", "pyramid", "tower", "dense head"}
    assert sum(part["multiply_adds"] for part in parts.values()) == record["multiply_adds"]
    assert sum(record["operators"].values()) == record["multiply_adds"]
    sampled = record["operators"].get("ms_deform_attn") or record["operators"]["grid_sampler"]
    assert record["multiply_adds"] - record["multiply_adds_without_sampling"] == sampled
    assert 0 < record["peak_activation_bytes"] < sum(part["activation_bytes"] for part in parts.values())
    assert record["published"] is None and "published" not in printed
    for line in (*parts, *record["operators"], *record["uncounted_calls"]):
        assert line in printed
    assert set(record["uncounted_calls"]) <= MOVING  # nothing of weight is left out
    record["published"] = PUBLISHED["grounding_dino/swin_t_ogc"]._asdict()
    printed = report(record)
    assert "published" in printed and " 172 " in printed and " 464 " in printed
    assert PUBLISHED["grounding_dino/swin_t_ogc"].note in printed


def test_a_dense_head_belongs_to_parts_too(
    tiny_glip_cfg: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything of weight in a GLIP is counted, and its learned vectors with the text they are added to."""
    file, output = tmp_path / "glip.yaml", tmp_path / "cost.json"
    tiny_glip_cfg.MODEL.DENSE_HEAD.PROMPT_VECTORS = 20
    file.write_text(tiny_glip_cfg.dump())
    assert main(["--config-file", str(file), *ARGUMENTS, "--json", str(output)]) == 0
    record = json.loads(output.read_text())
    named = {"backbone", "pyramid", "text encoder", "tower", "dense head"}
    assert named == set(record["parts"]) - {"preprocessing", "postprocessing"}
    assert all(record["parts"][name]["parameters"] for name in named) and record["operators"]["ms_deform_attn"]
    assert set(record["uncounted_calls"]) <= MOVING
    assert record["parts"]["postprocessing"]["activation_bytes"]


def test_a_deformable_convolution_by_hand() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = DeformableBranch(8, 2, 4)

        def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
            maps = torch.stack([inputs["image"] for inputs in batched_inputs])
            offset, mask = torch.zeros(2, 18, 3, 5), torch.ones(2, 9, 3, 5)
            return [{"sem_seg": m} for m in self.tower(maps, offset, mask)]

    flops = count_flops(Branch().eval(), [{"image": torch.rand(8, 6, 10)} for _ in range(2)])
    # for every place 9 samples of 8 channels, each of 4 neighbours and a weight, and their products with 8 filters
    assert flops.multiply_adds["tower", "ms_deform_attn"] == 2 * 3 * 5 * 9 * 8 * 5
    assert flops.multiply_adds["tower", "linear"] == 2 * 3 * 5 * 9 * 8 * 8


def test_published_figures_are_those_of_packaged_configurations(tmp_path: Path) -> None:
    for name, cost in PUBLISHED.items():
        assert published_cost(name) == published_cost(get_config_file(name)) == cost and cost.note
    assert published_cost("swin_t_ogc") == PUBLISHED["grounding_dino/swin_t_ogc"]
    assert published_cost("shapes_tiny") is None
    own = tmp_path / "swin_t_ogc.yaml"
    own.write_text(f'_BASE_: "{get_config_file("swin_t_ogc")}"\n')
    assert published_cost(own) is None
    assert {Path(name).name for name in PUBLISHED} <= {Path(name).name for name in list_configs()}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_parameters(name: str, weightless: None) -> None:
    """The sizes of the models, whose names and shapes are those of the published files."""
    import grounding_dino.modeling  # noqa: F401

    from detectron2.modeling import META_ARCH_REGISTRY

    cfg = load_cfg(name)
    counts = count_parameters(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg))
    millions = sum(count.total for count in counts.values()) / 1e6
    if name.endswith("hid1024"):  # see the note of its figures
        assert round(millions, 1) == 43.8
    else:
        assert round(millions) == PUBLISHED[name].parameters_m


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "800"], "is not a size"),
        (["--batch", "0"], "not a positive number"),
        (["--config-file", "no_such_model"], "no configuration"),
        (["--config-file", "r50_instance", "--categories", "cat"], "reads no text"),
        (["--opts", "MODEL.NO_SUCH_KEY", "1"], "no configuration key"),
        (["--opts", "DATASETS.TEST", "()"], "give --categories"),
    ],
)
def test_what_cannot_be_analyzed_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_totals_of_no_operators() -> None:
    empty = FlopCounts({}, {}, {})
    assert empty.total() == 0 and empty.by_operator() == {}


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--config-file", "--size", "--batch", "--categories", "--json", "--opts"))
    assert isinstance(build_parser(), argparse.ArgumentParser)
