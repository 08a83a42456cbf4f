"""Rules translate both ways; layouts are permutations of the right elements."""

import grounding_dino  # noqa: F401  # makes detectron2 importable
from grounding_dino.checkpoint.files import CheckpointError
from grounding_dino.checkpoint.rules import (
    COPIES,
    MMDET_MERGING,
    ROWS,
    Rule,
    Table,
    collapse_heads,
    compile_template,
    expand_heads,
)

import pytest
import torch


def test_templates_match_whole_names():
    pattern = compile_template("layers.{i}.norm.{p}")
    assert pattern.fullmatch("layers.12.norm.weight").groupdict() == {"i": "12", "p": "weight"}
    assert not pattern.fullmatch("layers.x.norm.weight")
    assert not pattern.fullmatch("layersx1.norm.weight")
    assert not pattern.fullmatch("layers.1.norm.weight.more")


def test_rows_join_and_split():
    table = Table((Rule("qkv.{p}", ("q.{p}", "k.{p}", "v.{p}"), ROWS),))
    theirs = {f"{word}.weight": torch.randn(2, 3) for word in "qkv"}
    ours = table.to_ours(theirs).state
    assert torch.equal(ours["qkv.weight"], torch.cat([theirs["q.weight"], theirs["k.weight"], theirs["v.weight"]]))
    back = table.to_theirs(ours).state
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_a_lost_part_is_named():
    table = Table((Rule("qkv.{p}", ("q.{p}", "k.{p}", "v.{p}"), ROWS),))
    with pytest.raises(CheckpointError, match=r"lacks \['v.weight'\]"):
        table.to_ours({"q.weight": torch.ones(1), "k.weight": torch.ones(1)})


def test_copies_must_be_equal():
    table = Table((Rule("head.{p}", ("a.{p}", "b.{p}"), COPIES),))
    assert table.to_theirs({"head.bias": torch.ones(2)}).state.keys() == {"a.bias", "b.bias"}
    assert table.to_ours({"b.bias": torch.ones(2)}).state.keys() == {"head.bias"}
    with pytest.raises(CheckpointError, match="a.bias .*b.bias .*copies.*differ"):
        table.to_ours({"a.bias": torch.ones(2), "b.bias": torch.zeros(2)})


def test_unknown_names_are_reported_not_lost():
    table = Table((Rule("a.{p}", "x.{p}"),))
    assert table.to_ours({"x.weight": torch.ones(1), "z": torch.ones(1)}).unknown == ("z",)
    assert table.to_theirs({"a.weight": torch.ones(1), "c": torch.ones(1)}).unknown == ("c",)


def test_patch_merging_orders():
    # channel c at place (row, column) is written c, row, column as digits
    theirs = torch.tensor([[100 * c + 10 * row + column for c in range(3) for row in (0, 1) for column in (0, 1)]])
    ours = [[100 * c + 10 * row + col for row, col in ((0, 0), (1, 0), (0, 1), (1, 1)) for c in range(3)]]
    assert MMDET_MERGING.to_ours([theirs]).tolist() == ours
    assert torch.equal(MMDET_MERGING.to_theirs(torch.tensor(ours), 1)[0], theirs)


def test_patch_merging_layer_gives_the_same_map():
    x = torch.randn(1, 4, 6, 5)  # (B, H, W, C)
    chunks = torch.cat([x[:, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    unfolded = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).mT.reshape(1, 2, 3, 20)  # mmdet's
    weight = torch.randn(7, 20)
    assert torch.allclose(unfolded @ weight.T, chunks @ MMDET_MERGING.to_ours([weight]).T, atol=1e-5)


def test_heads_collapse_only_if_equal_and_expand_only_if_single():
    head = {"heads.0.w": torch.ones(2), "heads.1.w": torch.ones(2), "headsman": torch.zeros(1)}
    assert collapse_heads(head, "heads.").keys() == {"heads.0.w", "headsman"}
    assert expand_heads(collapse_heads(head, "heads."), "heads.", 2).keys() == head.keys()
    head["heads.1.w"] = torch.zeros(2)
    assert collapse_heads(head, "heads.").keys() == head.keys()
    assert torch.equal(expand_heads(head, "heads.", 2)["heads.1.w"], torch.zeros(2))
