"""GLIP against the outputs of mmdet and of the authors' code (tests/reference/glip), with the recipe's weights."""

from __future__ import annotations

import dataclasses
import itertools
from types import ModuleType
from typing import Any

import grounding_dino.modeling  # noqa: F401
from grounding_dino.checkpoint.origins import translate_checkpoint
from grounding_dino.model_zoo import load_cfg
from grounding_dino.structures import TextFeatures, TokenizedText

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor

pytestmark = pytest.mark.slow

MMDET = "manifest_mmdet_glip_atss_swin-{}.json"
OFFICIAL = "manifest_official_glip_swin-{}.json"
# golden file -> config, manifest
CASES = {
    "glip_a": ("glip_t_a", MMDET.format("t_a_fpn_dyhead_pretrain_obj365")),
    "glip_c": ("glip_t_c", MMDET.format("t_c_fpn_dyhead_pretrain_obj365-goldg")),
    "glip_t": ("glip_t_c", MMDET.format("t_c_fpn_dyhead_pretrain_obj365-goldg")),
    "glip_l": ("glip_l", MMDET.format("l_fpn_dyhead_pretrain_mixeddata")),
    "official_glip_a": ("glip_t_a", OFFICIAL.format("t_a")),
    "official_glip_t": ("glip_t_c", OFFICIAL.format("t_c_full")),
    "official_glip_l": ("glip_l", OFFICIAL.format("l")),
}
SHORT, LONG = ["bench", "car"], ["potted plant", "traffic light", "tv", "hair drier"]
LONG_CASES = ("glip_t", "official_glip_a")
LEVELS = range(3, 8)
DETECTION = ("boxes", "scores", "labels")


class Case:
    """A golden case, our model with its weights, and what its parts gave."""

    def __init__(self, name: str, recipe_weights, reference, fill: ModuleType) -> None:
        config, manifest = CASES[name]
        self.golden = dict(np.load(reference / "glip" / f"golden_{name}.npz"))
        self.official = name.startswith("official")
        self.atol = 5e-4 if name.endswith("_l") else 3e-4  # of tower and heads
        opts: list[object] = ["MODEL.DEVICE", "cpu"]
        if not self.official:
            opts += ["MODEL.DENSE_HEAD.RANK_BY_CENTERNESS_ON", False, "MODEL.DENSE_HEAD.NMS_LAST_PIXEL_ON", False]
        self.model: Any = build_model(load_cfg(config, opts)).eval()
        weights = recipe_weights("glip", manifest)
        key, prefix = ("model", "module.") if self.official else ("state_dict", "")
        content = {key: {prefix + tensor: value for tensor, value in weights.items()}}
        self.model.load_state_dict(translate_checkpoint(content, name).state)
        names, size, seed = (LONG, (150, 200), 2) if name in LONG_CASES else (SHORT, (192, 256), 1)
        picture = fill.fill_image(*size, seed=seed)[..., ::-1].copy()  # BGR
        self.inputs = {"image": torch.from_numpy(picture).permute(2, 0, 1), "categories": names}
        self.seen: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            self._run(self._watched())

    def _watched(self) -> list[Any]:
        """Hooks that keep what the modules of the tower give, under the golden names."""
        hooks, number = [], itertools.count()
        for block in self.model.tower.blocks:
            modules = [("VLFuse", block.fusion), ("BertEncoderLayer", block.text_layer), ("DyConv", block.convolution)]
            for kind, module in modules:
                if module is not None:
                    hooks.append(self._watch(f"tower{next(number):02d}_{kind}", module))
        return hooks

    def _watch(self, name: str, module: torch.nn.Module) -> Any:
        def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            self.seen[name] = [output] if isinstance(output, Tensor) else list(output)

        return module.register_forward_hook(keep)

    def _run(self, hooks: list[Any]) -> None:
        model = self.model
        (image,) = model.preprocess_image([self.inputs])
        self.batch = torch.nn.functional.pad(image, (0, -image.shape[2] % 32, 0, -image.shape[1] % 32))[None]
        self.backbone = model.backbone(self.batch)
        self.maps = model.extract_features(self.batch)
        (self.prompt,) = model.text_prompts_of(self.inputs)
        self.text = self._with_a_padded_column()
        self.tower, self.tokens = model.tower(self.maps, self.text)
        for hook in hooks:
            hook.remove()
        unmasked = dataclasses.replace(self.text, padding_mask=torch.zeros_like(self.text.padding_mask))
        self.output = model.head(self.tower, self.tokens, unmasked)
        self.found = model([self.inputs])[0]["instances"]

    def _with_a_padded_column(self) -> TextFeatures:
        """The text as the other implementations see it: one [PAD] more, which is no key and has its own features."""
        length = len(self.prompt)
        mask = torch.ones(1, length + 1, length + 1, dtype=torch.bool)
        mask[..., length] = False
        padding = torch.zeros(1, length + 1, dtype=torch.bool)
        padding[:, length] = True
        positions = torch.arange(length + 1)[None]
        text = TokenizedText(torch.tensor([[*self.prompt.input_ids, 0]]), padding, mask, positions)
        hidden = self.model.text_encoder.encode(text)
        if self.model.tower.blocks[0].fusion is None:  # without fusion the head reads text without padding
            hidden = hidden * ~padding[..., None]
        return TextFeatures(hidden, padding, mask, positions)

    def check(self, ours: Tensor, name: str, atol: float) -> None:
        expected = self.golden[name]
        assert tuple(ours.shape) == expected.shape, name
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, recipe_weights, reference, fill) -> Case:
    return Case(request.param, recipe_weights, reference, fill)


def test_text(case: Case) -> None:
    np.testing.assert_array_equal(case.prompt.input_ids, case.golden["input_ids"])
    with torch.no_grad():
        features = case.model.text_encoder([case.prompt]).embeddings
    case.check(features, "text_embedded", 1e-4)
    if "text_hidden" in case.golden:
        case.check(features, "text_hidden", 1e-4)


def test_backbone_and_pyramid(case: Case) -> None:
    if not case.official:
        case.check(case.batch[:, :, ::8, ::8], "input_normalized_sub", 1e-5)
        for i, name in enumerate(case.model.in_features):
            case.check(case.backbone[name][:, ::8, ::2, ::2], f"swin_out{i}_sub", 1e-4)
    for level, x in zip(LEVELS, case.maps, strict=True):
        case.check(x[:, ::8], f"fpn_p{level}_sub", 1e-4)


def test_tower(case: Case) -> None:
    length, compared = len(case.prompt), 0
    for name, outputs in case.seen.items():
        maps = maps_of(name, outputs, case.maps)
        for level in LEVELS:
            if (key := f"{name}_vis_p{level}") in case.golden:
                step = 2 if "DyConv" in name and level == 3 else 1
                case.check(maps[level - 3][:, ::8, ::step, ::step], key, case.atol)
                compared += 1
        if (key := f"{name}_hidden") in case.golden:
            case.check(outputs[-1][:, :length, ::4], key, case.atol)
            compared += 1
    assert compared == sum(key.startswith("tower") and not key.startswith("tower_final") for key in case.golden)
    for level, x in zip(LEVELS, case.tower, strict=True):
        case.check(x[:, ::8], f"tower_final_vis_p{level}", case.atol)
    if "tower_final_hidden" in case.golden:
        case.check(case.tokens[:, :length], "tower_final_hidden", case.atol)


def maps_of(name: str, outputs: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The maps that a module gave; fusion gives them as tokens."""
    if "VLFuse" not in name:
        return outputs
    parts = outputs[0].transpose(1, 2).split([x[0, 0].numel() for x in like], dim=2)
    return [part.reshape(x.shape) for part, x in zip(parts, like)]


def test_heads(case: Case) -> None:
    for i, level in enumerate(LEVELS):
        size = case.output.sizes[i]
        case.check(case.output.token_logits[i], f"logits_p{level}", case.atol)
        case.check(case.output.box_deltas[i].transpose(1, 2).unflatten(2, size), f"bbox_pred_p{level}", case.atol)
        case.check(case.output.centerness[i][:, None].unflatten(2, size), f"centerness_p{level}", case.atol)


def test_detections(case: Case) -> None:
    """As sets: every golden detection has one of ours like it, and the other way round, but for ties at the end."""
    ours, golden = case.found, {key: torch.from_numpy(case.golden[f"det_{key}"]) for key in DETECTION}
    boxes = golden["boxes"] + torch.tensor([0.0, 0, 1, 1]) * case.official  # theirs count the last pixel
    labels, scores = golden["labels"] - int(case.official), golden["scores"]
    same = (ours.pred_boxes.tensor[:, None] - boxes[None]).abs().amax(-1) < 0.02
    same &= (ours.pred_classes[:, None] == labels[None]) & ((ours.scores[:, None] - scores).abs() < 1e-4)
    limit = scores.min() + 1e-4
    assert same.any(0)[scores > limit].all()
    assert same.any(1)[ours.scores > limit].all()
    assert (scores > limit).sum() > 90
