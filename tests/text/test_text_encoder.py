import copy
import importlib.util
import json
import re
from pathlib import Path

from grounding_dino.config import add_grounding_dino_config
from grounding_dino.text.batch import collate_prompts
from grounding_dino.text.bert import Bert
from grounding_dino.text.prompt import build_caption_prompt, build_category_prompts
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.text_encoder import BertEncoder, build_text_encoder
from grounding_dino.text.tokenizer import build_tokenizer

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from safetensors.torch import save_file

REFERENCE = Path(__file__).parents[1] / "reference"
NAMES = ["traffic light", "cat", "antidisestablishmentarianism"]


def tiny_encoder(dropout: float = 0.0, embed_dim: int | None = 8, sub_sentence: bool = True, **options) -> BertEncoder:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    bert = Bert(
        vocabulary_size=tokenizer.size,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        ffn_dim=32,
        max_positions=64,
        dropout=dropout,
    )
    for name, parameter in bert.named_parameters():  # the default is too small to tell tokens apart
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embeddings" in name else 0.5)
    return BertEncoder(bert=bert, prompts=PromptBuilder(tokenizer, 64, sub_sentence), embed_dim=embed_dim, **options)


@pytest.fixture
def encoder():
    return tiny_encoder().eval()


@pytest.fixture
def prompts(encoder):
    (categories,) = build_category_prompts(NAMES, encoder.tokenizer)
    return [categories, build_caption_prompt("a red bus", encoder.tokenizer)]


class Count:
    """Counts the runs of BERT and the rows they held."""

    def __init__(self, encoder: BertEncoder) -> None:
        self.rows: list[int] = []
        encoder.bert.register_forward_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs, output) -> None:
        self.rows.append(len(kwargs["input_ids"]))


# ------------------------------------------------------------------------------------------------- the numbers


def test_shapes_and_masks(encoder, prompts):
    features = encoder(prompts)
    text = collate_prompts(prompts)
    assert features.embeddings.shape == (2, len(prompts[0]), 8)
    assert torch.equal(features.padding_mask, text.padding_mask)
    assert torch.equal(features.attention_mask, text.attention_mask)
    assert torch.equal(features.position_ids, text.position_ids)


@torch.no_grad()
def test_a_name_sees_itself_alone(encoder):
    """Each name and its period, encoded in the list, equal an unmasked BERT on just these tokens."""
    (prompt,) = build_category_prompts(NAMES, encoder.tokenizer)
    together = encoder.encode(collate_prompts([prompt]))[0]
    for ((start, end),) in prompt.token_spans:
        length = end + 1 - start
        ids, everything = torch.tensor([prompt.input_ids[start : end + 1]]), torch.ones(1, length, length).bool()
        alone = encoder.bert(ids, everything, torch.arange(length)[None])[0]
        torch.testing.assert_close(together[start : end + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_prompt_does_not_depend_on_its_batch(encoder, prompts):
    together = encoder(prompts).embeddings
    encoder.clear_cache()
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(encoder([prompt]).embeddings[0], row[: len(prompt)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_lower_precision(encoder, prompts, dtype):
    expected = encoder(prompts).embeddings
    with torch.autocast("cpu", dtype):
        found = encoder(prompts).embeddings
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.15, rtol=0)
    torch.testing.assert_close(encoder.to(dtype)(prompts).embeddings.float(), expected, atol=0.15, rtol=0)


def full_size_bert() -> Bert:
    return Bert(
        vocabulary_size=30522,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        ffn_dim=3072,
        max_positions=512,
        dropout=0.1,
    )


@pytest.mark.slow
@torch.no_grad()
def test_full_size_bert_gives_the_authors_numbers():
    golden = np.load(REFERENCE / "grounding_dino" / "swin_t_case1.npz")
    encoder = BertEncoder(bert=full_size_bert(), prompts=PromptBuilder(), embed_dim=256).eval()
    encoder.load_state_dict(reference_weights())
    prompts = [encoder.prompts.of_caption(str(caption)) for caption in golden["captions"]]
    hidden = encoder.encode(collate_prompts(prompts))
    np.testing.assert_allclose(hidden, golden["bert_last_hidden"], atol=5e-5, rtol=0)
    for _ in range(2):  # computed, then from the cache
        np.testing.assert_allclose(encoder(prompts).embeddings, golden["text_features"], atol=5e-5, rtol=0)


def reference_weights() -> dict[str, torch.Tensor]:
    """The text part of the Swin-T model, filled by the recipe of the reference's README."""
    spec = importlib.util.spec_from_file_location("reference_fill", REFERENCE / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    folder = REFERENCE / "grounding_dino"
    manifest = json.loads((folder / "manifest_swin_t_ogc.json").read_text())
    overrides = json.loads((folder / "fill_overrides.json").read_text())
    weights = {}
    for name, shape in manifest.items():
        if re.match(r"bert\.(?!pooler)|feat_map\.", name):
            value = fill.fill_tensor(name, tuple(shape))
            for pattern, factor in overrides.items():
                value = value * np.float32(factor) if re.search(pattern, name) else value
            weights[name.replace("feat_map", "projection")] = torch.from_numpy(value)
    return weights


# ---------------------------------------------------------------------------------------------- BERT's own way


@pytest.fixture
def glip_encoder():
    return tiny_encoder(embed_dim=None, sub_sentence=False).eval()


@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_one_sentence_is_an_ordinary_bert(glip_encoder, cache):
    """A mask over padding, which all tokens leave out, and positions from 0."""
    if not cache:
        glip_encoder._cache.size = 0
    (names,) = glip_encoder.prompts.of_categories(NAMES)
    prompts = [names, glip_encoder.prompts.of_caption("is it a t.v.?"), *glip_encoder.prompts.of_categories(["cat"])]
    features = glip_encoder(prompts)
    ids = torch.zeros(3, len(names), dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt.input_ids)
    seen = (ids != 0)[:, None].expand(-1, len(names), -1)
    expected = glip_encoder.bert(ids, seen, torch.arange(len(names)).expand_as(ids))
    assert features.embeddings.shape == expected.shape == (3, len(names), 16)
    assert torch.equal(features.padding_mask, ids == 0)
    real = ~features.padding_mask
    torch.testing.assert_close(features.embeddings[real], expected[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cache", [True, False])
@torch.no_grad()
def test_a_sentence_does_not_depend_on_its_batch(glip_encoder, cache):
    if not cache:
        glip_encoder._cache.size = 0
    prompts = [glip_encoder.prompts.of_caption(text) for text in ("cat", "a red bus on the road", "two dogs.")]
    together = glip_encoder(prompts).embeddings
    assert together.isfinite().all()
    glip_encoder.clear_cache()
    for row, prompt in zip(together, prompts, strict=True):
        torch.testing.assert_close(glip_encoder([prompt]).embeddings[0], row[: len(prompt)], atol=1e-5, rtol=0)


def test_without_projection_there_are_only_berts_weights(glip_encoder):
    assert {name.split(".")[0] for name in glip_encoder.state_dict()} == {"bert"}
    glip_encoder([glip_encoder.prompts.of_caption("a cat")]).embeddings.sum().backward()
    frozen = tiny_encoder(embed_dim=None, sub_sentence=False, freeze=True).train()
    assert not frozen([frozen.prompts.of_caption("a cat")]).embeddings.requires_grad


@torch.no_grad()
def test_both_styles_of_the_same_tokens_are_two_entries(glip_encoder):
    written = PromptBuilder(max_tokens=64).of_caption("cat. dog.")
    sentence = glip_encoder.prompts.of_caption("cat. dog.")
    assert written.input_ids == sentence.input_ids
    count = Count(glip_encoder)
    first = [glip_encoder([prompt]).embeddings for prompt in (written, sentence)]
    assert not torch.allclose(*first) and count.rows == [1, 1]
    for prompt, features in zip((written, sentence), first, strict=True):
        assert torch.equal(glip_encoder([prompt]).embeddings, features)
    assert count.rows == [1, 1]


@pytest.mark.slow
@torch.no_grad()
def test_full_size_bert_gives_glips_numbers(fill):
    """Two captions of different length in one batch, each of which mmdet's GLIP had alone."""
    manifest = "manifest_mmdet_glip_atss_swin-t_c_fpn_dyhead_pretrain_obj365-goldg.json"
    names = json.loads((REFERENCE / "glip" / manifest).read_text())
    prefix = "language_model.language_backbone.body.model."
    weights = fill.fill_state_dict({name: shape for name, shape in names.items() if name.startswith(prefix)})
    bert = full_size_bert()
    bert.load_state_dict({name.removeprefix(prefix): torch.from_numpy(value) for name, value in weights.items()})
    encoder = BertEncoder(bert=bert, prompts=PromptBuilder(sub_sentence=False), embed_dim=None).eval()
    golden = [np.load(REFERENCE / "glip" / f"golden_glip_{case}.npz") for case in "ct"]
    prompts = [encoder.prompts.of_caption(str(case["caption"])) for case in golden]
    for row, case, prompt in zip(encoder(prompts).embeddings, golden, prompts, strict=True):
        np.testing.assert_allclose(row[: len(prompt)], case["text_hidden"][0], atol=1e-4, rtol=0)
        np.testing.assert_allclose(row[: len(prompt)], case["text_embedded"][0], atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------------------------- the cache


@torch.no_grad()
def test_a_second_picture_does_not_run_bert(encoder, prompts):
    count = Count(encoder)
    first = encoder(prompts).embeddings
    assert torch.equal(encoder(prompts).embeddings, first)
    assert torch.equal(encoder(prompts[:1]).embeddings, first[:1])
    assert torch.equal(encoder(prompts[1:]).embeddings[0], first[1, : len(prompts[1])])
    assert count.rows == [3]  # two prompts and the padding


@torch.no_grad()
def test_equal_prompts_of_a_batch_are_encoded_once(encoder, prompts):
    count = Count(encoder)
    features = encoder(prompts * 2)
    assert torch.equal(features.embeddings[:2], features.embeddings[2:])
    assert count.rows == [3]
    encoder.clear_cache()
    for features in (encoder(prompts[:1] * 3), encoder(prompts[:1] * 2)):  # as pictures with one list of names have it
        assert torch.equal(features.embeddings[0], features.embeddings[1])
        assert features.attention_mask.shape[1] == len(prompts[0]) and not features.padding_mask.any()
    assert count.rows == [3, 1]  # and no padding


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0], [0, 1], [1, 0, 1], [1, 1], [0, 2, 1]])
def test_cached_and_direct_features_agree_on_padding_too(encoder, prompts, rows):
    (as_long,) = build_category_prompts(["cat", "traffic light", "antidisestablishmentarianism"], encoder.tokenizer)
    assert len(as_long) == len(prompts[0]) > len(prompts[1])
    chosen = [[*prompts, as_long][row] for row in rows]
    text = collate_prompts(chosen)
    direct = encoder.projection(encoder.encode(text))
    for _ in range(2):
        features = encoder(chosen)
        torch.testing.assert_close(features.embeddings, direct, atol=1e-5, rtol=0)
        assert torch.equal(features.padding_mask, text.padding_mask)
        assert torch.equal(features.attention_mask, text.attention_mask)
        assert torch.equal(features.position_ids, text.position_ids)
        assert features.has_padding == text.has_padding == text.padding_mask.any()


@torch.no_grad()
def test_a_second_picture_makes_no_tensors_of_a_prompt(encoder, prompts, monkeypatch):
    first = encoder(prompts)
    monkeypatch.setattr("grounding_dino.text.text_encoder.collate_prompts", None)  # calling it would fail
    assert torch.equal(encoder(prompts).attention_mask, first.attention_mask)


@torch.no_grad()
def test_a_replaced_layer_is_noticed(encoder, prompts):
    before = encoder(prompts).embeddings
    encoder.bert.encoder.layer[1] = copy.deepcopy(encoder.bert.encoder.layer[0])
    assert not torch.allclose(before, encoder(prompts).embeddings)


def test_same_tokens_in_other_segments_are_another_entry(encoder):
    caption = build_caption_prompt("t.v.", encoder.tokenizer)
    (category,) = build_category_prompts(["t.v"], encoder.tokenizer)
    assert caption.input_ids == category.input_ids
    with torch.no_grad():
        assert not torch.allclose(encoder([caption]).embeddings, encoder([category]).embeddings)


@torch.no_grad()
def test_changed_weights_are_noticed(encoder, prompts):
    before = encoder(prompts).embeddings
    encoder.bert.embeddings.word_embeddings.weight.mul_(2)
    changed = encoder(prompts).embeddings
    assert not torch.allclose(before, changed)
    encoder.load_state_dict({name: value * 0.5 for name, value in encoder.state_dict().items()})
    halved = encoder(prompts).embeddings
    assert not torch.allclose(changed, halved)
    encoder.projection.weight.data.mul_(2)  # invisible to version counters
    encoder.clear_cache()
    assert not torch.allclose(halved, encoder(prompts).embeddings)


@torch.no_grad()
def test_entries_belong_to_a_precision(encoder, prompts):
    plain = encoder(prompts).embeddings
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(prompts).embeddings.dtype == torch.bfloat16
    assert torch.equal(encoder(prompts).embeddings, plain)
    encoder.double()
    assert len(encoder._cache) == 0
    assert encoder(prompts).embeddings.dtype == torch.float64


def test_with_gradient_nothing_is_cached(encoder, prompts):
    encoder(prompts).embeddings.sum().backward()
    assert encoder.bert.embeddings.word_embeddings.weight.grad is not None
    encoder.train()
    with torch.no_grad():
        encoder(prompts)
    assert len(encoder._cache) == 0


@torch.no_grad()
def test_the_cache_is_bounded_and_can_be_off(prompts):
    encoder = tiny_encoder(cache_size=1).eval()
    expected = encoder(prompts).embeddings
    assert len(encoder._cache) == 1
    off = tiny_encoder(cache_size=0).eval()
    torch.testing.assert_close(off(prompts).embeddings, expected, atol=1e-5, rtol=0)
    assert len(off._cache) == 0


def test_features_cached_in_inference_mode_serve_elsewhere(encoder, prompts):
    with torch.inference_mode():
        first = encoder(prompts).embeddings
    with torch.no_grad():
        assert torch.equal(encoder(prompts).embeddings, first)
    encoder(prompts).embeddings.sum().backward()


def test_copies_have_their_own_empty_cache(encoder, prompts):
    with torch.no_grad():
        encoder(prompts)
    assert len(copy.deepcopy(encoder)._cache) == 0


# ------------------------------------------------------------------------------------------- training, building


def test_frozen_bert_stays_in_eval_mode_and_untouched(prompts):
    encoder = tiny_encoder(dropout=0.5, freeze=True).train()
    assert not encoder.bert.training
    assert encoder.projection.training
    first, second = encoder(prompts).embeddings, encoder(prompts).embeddings
    assert torch.equal(first, second)
    first.sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is not None] == [
        "projection.weight",
        "projection.bias",
    ]


def test_dropout_acts_in_training(prompts):
    encoder = tiny_encoder(dropout=0.5).train()
    assert not torch.allclose(encoder(prompts).embeddings, encoder(prompts).embeddings)


def test_activation_checkpointing_gives_the_same_gradients(prompts):
    gradients = []
    for checkpointing in (False, True):
        encoder = tiny_encoder(activation_checkpointing=checkpointing).train()
        encoder(prompts).embeddings.square().sum().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_building_from_a_config(tmp_path):
    cfg = get_cfg()
    add_grounding_dino_config(cfg)
    options = cfg.MODEL.TEXT_ENCODER
    options.HIDDEN_SIZE, options.NUM_LAYERS, options.NUM_HEADS, options.FFN_DIM = 16, 2, 2, 32
    options.FREEZE_ON, options.CACHE_SIZE, options.MAX_TOKENS, cfg.MODEL.EMBED_DIM = True, 3, 128, 8
    source = build_text_encoder(cfg)
    save_file(source.bert.state_dict(), tmp_path / "model.safetensors")
    options.WEIGHTS = "no/such/folder"  # building reads no file
    encoder = build_text_encoder(cfg)
    encoder.load_weights(str(tmp_path))
    assert (encoder.max_tokens, encoder.freeze, encoder._cache.size) == (128, True, 3)
    assert encoder.projection.weight.shape == (8, 16)
    assert {name.split(".")[0] for name in encoder.state_dict()} == {"bert", "projection"}
    assert not [name for name in encoder.state_dict() if "pooler" in name]
    for name, value in source.bert.state_dict().items():
        assert torch.equal(value, encoder.bert.state_dict()[name])
    options.PROJECTION_ON, options.SUB_SENTENCE_ON = False, False
    encoder = build_text_encoder(cfg)
    assert isinstance(encoder.projection, torch.nn.Identity)
    assert encoder.prompts == PromptBuilder(max_tokens=128, sub_sentence=False)
    options.NAME = ""
    assert build_text_encoder(cfg) is None


def test_tables_too_small_are_refused():
    options = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "ffn_dim": 8, "dropout": 0.0}
    small = Bert(vocabulary_size=100, max_positions=512, **options)
    with pytest.raises(ValueError, match="30522 tokens, but BERT's table only 100 rows"):
        BertEncoder(bert=small, prompts=PromptBuilder(), embed_dim=8)
    short = Bert(vocabulary_size=30522, max_positions=64, **options)
    with pytest.raises(ValueError, match="MAX_TOKENS 256 exceeds MAX_POSITIONS 64"):
        BertEncoder(bert=short, prompts=PromptBuilder(), embed_dim=8)


def test_no_prompts_are_refused(encoder):
    with pytest.raises(ValueError, match="at least one prompt"):
        encoder([])
