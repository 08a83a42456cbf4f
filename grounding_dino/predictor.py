"""Pictures and prompts in, detections out.

predictor = load_predictor()  # the shipped model; or load_predictor("swin_t_ogc", "groundingdino_swint_ogc.pth")
found = predictor("street.jpg", categories=["car", "traffic light"])
found.pred_boxes, found.scores, found.labels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.model_zoo import SHIPPED_MODEL, build_model, find_weights, load_cfg, resolve_device
from grounding_dino.pictures import IMAGE_FORMATS, RgbArray, to_rgb
from grounding_dino.text.phrases import decode_phrases
from grounding_dino.text.prompt import build_caption_prompt

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from torch import nn

BOX_THRESHOLD = 0.35
TEXT_THRESHOLD = 0.25


class Labels(list[str]):
    """One text an instance; also indexed by the masks and index tensors that `Instances` is indexed with."""

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, (int, slice)):
            chosen = super().__getitem__(item)
            return Labels(chosen) if isinstance(item, slice) else chosen
        indices = np.arange(len(self))[np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)]
        if indices.ndim == 0:
            return super().__getitem__(int(indices))
        return Labels(super(Labels, self).__getitem__(i) for i in indices.tolist())


class GroundingPredictor:
    """Finds what a text names in pictures of any kind, with one model.

    `GroundingPredictor(cfg)` builds the model of a configuration and loads its MODEL.WEIGHTS;
    `GroundingPredictor(model=...)` wraps a model that exists. Pictures are resized as Detectron2 does it for
    testing, and detections are given in the original picture's pixels.
    """

    @configurable
    def __init__(
        self, *, model: nn.Module, min_size: int = 800, max_size: int = 1333, input_format: str = "RGB"
    ) -> None:
        """
        Args:
            model: called with Detectron2's list of dicts.
            min_size: length in pixels of the shorter side that the model sees; 0 leaves pictures as they are.
            max_size: upper bound of the longer side.
            input_format: order of channels that the model expects, "RGB" or "BGR".
        """
        if input_format not in IMAGE_FORMATS:
            raise ValueError(f"unknown INPUT.FORMAT {input_format!r}; choose from {list(IMAGE_FORMATS)}")
        self.model = model.eval()
        self.input_format = input_format
        self.resize = ResizeShortestEdge([min_size, min_size], max_size)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "model": build_model(cfg),
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "input_format": cfg.INPUT.FORMAT,
        }

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        categories: Sequence[str] | Sequence[Sequence[str]] | None = None,
        caption: str | Sequence[str] | None = None,
        box_threshold: float = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        image_format: str = "BGR",
        best_label_only: bool = True,
    ) -> Any:
        """Detect in one picture or in a list of them, which is run as one batch.

        Args:
            images: a path, a PIL picture, an array (H, W, 3) of uint8, a tensor (C, H, W) RGB of uint8, or a list
                of such; a 4-dimensional array or tensor is a list too.
            categories: names to look for, for all pictures, or one list a picture.
            caption: free text instead of categories, for all pictures, or one a picture.
            box_threshold: detections must score higher.
            text_threshold: with a caption, a word must score higher to be part of a detection's phrase.
            image_format: order of an array's channels: "BGR" as OpenCV and Detectron2 have it, or "RGB".
            best_label_only: at most one category a query; False gives every category above the threshold, as
                evaluation does.

        Returns:
            `Instances` on the CPU in the original picture's size, best first, a list of them for a list: `pred_boxes`,
            `scores`; with categories `pred_classes` (index into the picture's list) and `labels` (names), with a
            caption `phrases`; `pred_masks` where the model gives them.

        Raises:
            TypeError, ValueError, FileNotFoundError: with a sentence that names the offending picture, text or value.
        """
        for name, value in (("box_threshold", box_threshold), ("text_threshold", text_threshold)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
        single = _is_single(images)
        pictures = [to_rgb(image, image_format) for image in ([images] if single else images)]
        prompts = _prompts_of(categories, caption, len(pictures))
        if not pictures:
            return []
        inputs = [{**self.prepare(picture), **prompt} for picture, prompt in zip(pictures, prompts)]
        outputs = self.model(inputs)
        results = []
        for output, prompt in zip(outputs, prompts):
            found = output["instances"].to("cpu")
            found = found[found.scores > box_threshold]
            if "categories" in prompt:
                results.append(_name_categories(found, prompt["categories"], best_label_only))
            else:
                results.append(self._name_phrases(found, prompt["caption"], text_threshold))
        return results[0] if single else results

    def prepare(self, picture: RgbArray) -> dict[str, Any]:
        """The model's input for an RGB picture (H, W, 3): resized, as a tensor, with the size to answer in."""
        height, width = picture.shape[:2]
        image = picture if self.input_format == "RGB" else picture[..., ::-1]
        resized = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    def _name_phrases(self, found: Instances, caption: str, text_threshold: float) -> Instances:
        encoder: Any = self.model.text_encoder
        prompt = build_caption_prompt(caption, encoder.tokenizer, encoder.max_tokens)
        phrases = decode_phrases(found.token_logits, prompt, encoder.tokenizer, text_threshold)
        found.remove("token_logits")
        found.phrases = Labels(phrases)
        return found


def load_predictor(
    config_or_name: CfgNode | str | Path = SHIPPED_MODEL,
    weights: str | Path | None = None,
    device: str | None = None,
    opts: Sequence[object] = (),
) -> GroundingPredictor:
    """A predictor by name. Without arguments: the small model that comes with this package.

    Args:
        config_or_name: a short name ("swin_t_ogc"), the path of a .yaml file, or a configuration.
        weights: a checkpoint of any origin (file, folder or URL); by default the one that the configuration names,
            the shipped one, or the released one, which is then downloaded.
        device: "cuda", "cpu", ...; by default a GPU where there is one.
        opts: `KEY, VALUE, ...` that override the configuration.

    Raises:
        FileNotFoundError, ValueError: an unknown configuration, missing weights, a device that is not there.
    """
    cfg = load_cfg(config_or_name, opts)
    if device is not None or "MODEL.DEVICE" not in opts:
        cfg.MODEL.DEVICE = resolve_device(device)
    name = "" if isinstance(config_or_name, CfgNode) else str(config_or_name)
    cfg.MODEL.WEIGHTS = str(weights) if weights else find_weights(cfg, name)
    return GroundingPredictor(cfg)


def _is_single(images: Any) -> bool:
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim != 4
    return not isinstance(images, (list, tuple))


def _prompts_of(categories: Any, caption: Any, count: int) -> list[dict[str, Any]]:
    """The text part of each picture's input.

    Raises:
        ValueError: both kinds of prompt, none, or another number of prompts than of pictures.
    """
    if (categories is None) == (caption is None):
        given = "both" if categories is not None else "neither"
        raise ValueError(f"say what to look for with either categories=[...] or caption='...'; {given} is given")
    if caption is not None:
        captions = [caption] * count if isinstance(caption, str) else list(caption)
        return [{"caption": text} for text in _one_each(captions, count, "captions")]
    if isinstance(categories, str):
        raise TypeError(
            f"categories must be a list of names, not the string {categories!r}; give [...] of names, or caption=..."
        )
    each = list(categories)
    if not each or isinstance(each[0], str):
        each = [each] * count
    return [{"categories": list(names)} for names in _one_each(each, count, "lists of categories")]


def _one_each(texts: list[Any], count: int, what: str) -> list[Any]:
    if len(texts) != count:
        raise ValueError(f"there are {len(texts)} {what} for {count} pictures; give one for all, or one each")
    return texts


def _name_categories(found: Instances, categories: Sequence[str], best_label_only: bool) -> Instances:
    """Add `labels`; with `best_label_only` keep the first, that is the best, of each query's detections."""
    if found.has("query_indices"):
        if best_label_only:
            seen: dict[int, int] = {}
            for row, query in enumerate(found.query_indices.tolist()):
                seen.setdefault(query, row)
            found = found[torch.tensor(list(seen.values()), dtype=torch.int64)]
        found.remove("query_indices")
    found.labels = Labels(categories[i] for i in found.pred_classes.tolist())
    return found
