"""Our BERT against that of `transformers`, live; how it begins, and what it keeps in training."""

from __future__ import annotations

from typing import Any

import grounding_dino  # noqa: F401  (makes detectron2 importable)
from grounding_dino.text.batch import collate_prompts
from grounding_dino.text.bert import Bert
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.tokenizer import build_tokenizer

import pytest
import torch
import transformers
from torch import Tensor, nn

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "ffn_dim": 24, "max_positions": 32, "dropout": 0.0}


def tiny_bert(**options: Any) -> Bert:
    return Bert(**{"vocabulary_size": build_tokenizer().size, **TINY, **options})


def pair(attention: str) -> tuple[nn.Module, Bert]:
    """That of `transformers` and ours, with the same weights, spread so that every one of them counts."""
    torch.manual_seed(0)
    ours = tiny_bert()
    config = transformers.BertConfig(
        vocab_size=ours.vocabulary_size,
        hidden_size=TINY["hidden_size"],
        num_hidden_layers=TINY["num_layers"],
        num_attention_heads=TINY["num_heads"],
        intermediate_size=TINY["ffn_dim"],
        max_position_embeddings=TINY["max_positions"],
        attn_implementation=attention,
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(mean=float(name.endswith("LayerNorm.weight")), std=0.4)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval()


def in_segments() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, mask, positions and mask for theirs, of a list of names and a shorter caption, padded."""
    tokenizer = build_tokenizer()
    (names,) = build_category_prompts(["traffic light", "cat", "antidisestablishmentarianism"], tokenizer)
    text = collate_prompts([names, build_caption_prompt("a red bus. a dog.", tokenizer)])
    assert text.has_padding and not text.attention_mask[0].all()
    if int(transformers.__version__.split(".", 1)[0]) < 5:  # which makes three axes four, and numbers added to scores
        return text.input_ids, text.attention_mask, text.position_ids, text.attention_mask.float()
    lowest = torch.finfo(torch.float32).min
    added = torch.zeros(text.attention_mask.shape).masked_fill(~text.attention_mask, lowest)[:, None]
    return text.input_ids, text.attention_mask, text.position_ids, added


def in_one_piece() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of two texts whose tokens see all but padding, as GLIP's."""
    ids = build_tokenizer().size - 1 - torch.arange(14).view(2, 7)
    ids[1, 4:] = 0
    real = ids != 0
    return ids, real[:, None].expand(2, 7, 7), torch.arange(7).expand(2, 7), real.long()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("inputs", [in_segments, in_one_piece], ids=lambda function: function.__name__)
def test_numbers_and_gradients_are_those_of_transformers(inputs: Any, attention: str) -> None:
    theirs, ours = pair(attention)
    ids, mask, positions, their_mask = inputs()
    expected = theirs(input_ids=ids, attention_mask=their_mask, position_ids=positions).last_hidden_state
    found = ours(ids, mask, positions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with torch.no_grad():  # other products of matrices
        torch.testing.assert_close(ours(ids, mask, positions), expected, atol=1e-5, rtol=0)
    direction = torch.randn_like(expected)
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found_gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    torch.testing.assert_close(found_gradients, gradients, atol=1e-5, rtol=1e-5)  # which names what differs


def test_names_and_shapes_are_those_of_transformers() -> None:
    theirs, ours = pair("sdpa")
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 5 + 2 * 16
    assert {name for name, _ in ours.named_parameters()} == set(shapes[1])


def test_weights_begin_as_the_authors() -> None:
    torch.manual_seed(0)
    bert = tiny_bert(hidden_size=64, ffn_dim=128)
    for name, value in bert.state_dict().items():
        if "LayerNorm" in name or name.endswith(".bias"):
            assert (value == float(name.endswith("LayerNorm.weight"))).all(), name
        elif value.numel() > 1000:
            assert value.mean().abs() < 2e-3 and abs(value.std() - 0.02) < 1e-3, name
    words = bert.embeddings.word_embeddings.weight
    assert not words[0].any() and words[1:].any(1).all()
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    bert(torch.tensor([[0, 5, 7]]), mask, torch.arange(3)[None]).square().sum().backward()
    assert words.grad is not None and words.grad.any(1).nonzero()[:, 0].tolist() == [5, 7]


@pytest.mark.parametrize("training", [True, False])
def test_checkpointed_layers_run_again_for_their_gradients(training: bool) -> None:
    _, bert = pair("sdpa")
    bert.activation_checkpointing = True
    runs: list[int] = []
    for number, layer in enumerate(bert.encoder["layer"]):
        layer.attention["self"].register_forward_pre_hook(lambda *_, number=number: runs.append(number))
    ids, mask, positions, _ = in_segments()
    bert.train(training)(ids, mask, positions).square().sum().backward()
    assert runs == ([0, 1, 1, 0] if training else [0, 1])


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="HIDDEN_SIZE 16 is not a multiple of NUM_HEADS 3; change one"):
        tiny_bert(num_heads=3)
