"""Pictures and prompts in, detections and segments out.

predictor = load_predictor()  # the shipped model; or load_predictor("swin_t_ogc", "groundingdino_swint_ogc.pth")
found = predictor("street.jpg", categories=["car", "traffic light"])
found.pred_boxes, found.scores, found.labels

predictor = load_predictor("mask_dino/coco/r50_panoptic", "maskdino_r50_panoptic.pth")  # its classes are fixed
segments, segments_info = predictor("street.jpg")["panoptic_seg"]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grounding_dino.detection_choice import DetectionChoice
from grounding_dino.model_zoo import SHIPPED_MODEL, build_model, find_weights, load_cfg, resolve_device
from grounding_dino.pictures import PicturePreparation, is_single, to_rgb
from grounding_dino.precision import precision_of, running_in
from grounding_dino.prompt_arguments import Asked, class_prompts, prompts_of
from grounding_dino.structures import InstanceList
from grounding_dino.text.phrases import name_phrases
from grounding_dino.thresholds import BOX_THRESHOLD, TEXT_THRESHOLD, Threshold, check_thresholds

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import nn

Labels = InstanceList[str]


class GroundingPredictor:
    """Finds what a text names, or what a model of fixed classes knows, in pictures of any kind, with one model.

    `GroundingPredictor(cfg)` builds the model of a configuration, loads its MODEL.WEIGHTS, and runs it in its
    TEST.PRECISION;
    `GroundingPredictor(model=...)` wraps a model that exists. Pictures are resized as Detectron2 does it for
    testing, and detections are given in the original picture's pixels.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        min_size: int = 800,
        max_size: int = 1333,
        input_format: str = "RGB",
        weights: str = "",
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: called with Detectron2's list of dicts.
            min_size, max_size, input_format: of :class:`PicturePreparation`.
            weights: where the model's weights come from, for messages.
            precision: bfloat16 or float16 runs the model under autocast; None as it is, and as autocast is around it.
        """
        self.prepare = PicturePreparation(min_size, max_size, input_format)
        self.model = model.eval()
        self.weights = weights
        self.precision = precision

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "model": build_model(cfg),
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "input_format": cfg.INPUT.FORMAT,
            "weights": cfg.MODEL.WEIGHTS,
            "precision": precision_of(cfg),
        }

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names that a model of fixed classes finds ("class 17" where nobody said); None for a model with text."""
        fixed = getattr(self.model, "classes", None)
        return None if fixed is None else fixed.names

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        categories: Sequence[str] | Sequence[Sequence[str]] | None = None,
        caption: str | Sequence[str] | None = None,
        box_threshold: Threshold = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        image_format: str = "BGR",
        best_label_only: bool = True,
        not_wanted: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> Any:
        """Detect in one picture or in a list of them, which is run as one batch.

        A model with text takes either `categories` or `caption`; a model of fixed classes takes neither.

        Args:
            images: a path, a PIL picture, an array (H, W, 3) of uint8, a tensor (C, H, W) RGB of uint8, or a list
                of such; a 4-dimensional array or tensor is a list too.
            categories: names to look for, for all pictures, or one list a picture.
            caption: free text instead of categories, for all pictures, or one a picture.
            box_threshold: detections must score higher; a number, or thresholds by category
                (`CategoryThresholds.load(file)`), which do not go with a caption.
            text_threshold: with a caption, a word must score higher to be part of a detection's phrase.
            image_format: order of an array's channels: "BGR" as OpenCV and Detectron2 have it, or "RGB".
            best_label_only: at most one category a query; False gives every category above the threshold, as
                evaluation does.
            not_wanted: names, for all pictures or one list a picture, that compete with the categories for boxes and
                are dropped, as :class:`DetectionChoice` says; of a model of fixed classes some of these.

        Returns:
            `Instances` on the CPU in the original picture's size, best first, a list of them for a list: `pred_boxes`,
            `scores`; with categories or fixed classes `pred_classes` (index into the picture's list, or `classes`) and
            `labels` (names), with a caption `phrases`; `pred_masks` where the model gives them. No phrase is empty:
            where no word exceeds `text_threshold`, it is the best word.

            Of a model with TEST.PANOPTIC_ON or TEST.SEMANTIC_ON, for each picture a dict with what TEST switches on:
            `instances` as above; `panoptic_seg`, a map (H, W) int32 of segment ids, 0 for none, and the list of
            segments (`id`, `category_id`, `isthing`); `sem_seg` (K, H, W) float, whose argmax is the class of a pixel;
            and `class_names`, the K names that `category_id` and `sem_seg` count. `box_threshold` is of instances
            alone. Names that are not wanted stand last in `class_names`; `panoptic_seg` has no segment of them, while
            a pixel's best class in `sem_seg` may be one.

        Raises:
            TypeError, ValueError, FileNotFoundError: with a sentence that names the offending picture, text or value;
                ValueError also where the model answers with NaN.
        """
        single = is_single(images)
        pictures = [to_rgb(image, image_format) for image in ([images] if single else images)]
        prepared = [self.prepare(picture) for picture in pictures]
        results = self.detect(prepared, categories, caption, box_threshold, text_threshold, best_label_only, not_wanted)
        return results[0] if single else results

    @torch.no_grad()
    def detect(
        self,
        prepared: Sequence[dict[str, Any]],
        categories: Sequence[str] | Sequence[Sequence[str]] | None = None,
        caption: str | Sequence[str] | None = None,
        box_threshold: Threshold = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        best_label_only: bool = True,
        not_wanted: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> list[Any]:
        """As a call, in pictures that `prepare` made inputs of, here or in another process; always a list."""
        check_thresholds(box_threshold, text_threshold, caption)
        prompts = self._prompts(categories, caption, not_wanted, len(prepared))
        if not prepared:
            return []
        inputs = [{**self._moved(picture), **prompt} for picture, prompt in zip(prepared, prompts)]
        choice = DetectionChoice(box_threshold, best_label_only)
        return [
            self._result(answer, prompt, choice, text_threshold)
            for answer, prompt in zip(self._answers(inputs), prompts)
        ]

    def _moved(self, prepared: dict[str, Any]) -> dict[str, Any]:
        """The input where the model is; as bytes, a quarter of floats, and not waited for if in pinned memory."""
        device = getattr(self.model, "device", torch.device("cpu"))
        return {**prepared, "image": prepared["image"].to(device, non_blocking=True)}

    def check_prompt(
        self,
        categories: Sequence[str] | Sequence[Sequence[str]] | None = None,
        caption: str | Sequence[str] | None = None,
        not_wanted: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> None:
        """Refuse a text that no picture can be asked with, before there are pictures.

        Raises:
            TypeError, ValueError: as a call with this text does.
        """
        encoder: Any = getattr(self.model, "text_encoder", None)
        for prompt in self._prompts(categories, caption, not_wanted, None):
            if "caption" in prompt:
                encoder.prompts.of_caption(prompt["caption"])
            elif "categories" in prompt:
                encoder.prompts.of_categories(prompt["categories"])

    def _prompts(self, categories: Any, caption: Any, not_wanted: Any, count: int | None) -> list[Asked]:
        """As :func:`prompts_of` or :func:`class_prompts`, by the kind of model."""
        if self.classes is None:
            return prompts_of(categories, caption, not_wanted, count)
        return class_prompts(self.classes, categories, caption, not_wanted, count)

    def _answers(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The model's answers; ValueError where they are NaN or infinite."""
        try:
            with running_in(self.precision, getattr(self.model, "device", "cpu")):
                answers: list[dict[str, Any]] = self.model(inputs)
        except FloatingPointError as error:
            raise ValueError(describe_non_finite(self.model, self.weights)) from error
        if not all(answer["instances"].scores.isfinite().all() for answer in answers if "instances" in answer):
            raise ValueError(describe_non_finite(self.model, self.weights))
        return answers

    def _result(self, answer: dict[str, Any], asked: Asked, choice: DetectionChoice, text_threshold: float) -> Any:
        """What a call returns for one picture, from the model's answer."""
        names = asked.get("categories", self.classes)
        not_wanted = asked.get("not_wanted", ())
        result: dict[str, Any] = {}
        if "instances" in answer:
            found = answer["instances"]
            found = found[found.scores > choice.least(names or ("",))].to("cpu")
            if names is None:
                result["instances"] = self._name_phrases(found, asked["caption"], text_threshold)
            else:
                result["instances"] = _named(found, names, not_wanted, choice)
        segments = _segments_on_cpu(answer, not_wanted)
        return {**result, **segments, "class_names": list(names or ())} if segments else result["instances"]

    def _name_phrases(self, found: Instances, caption: str, text_threshold: float) -> Instances:
        encoder: Any = self.model.text_encoder
        prompt = encoder.prompts.of_caption(caption)
        phrases = name_phrases(found.token_logits, prompt, encoder.tokenizer, text_threshold)
        found.remove("token_logits")
        found.remove("query_indices")
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
        config_or_name: a short name ("swin_t_ogc", "mask_dino/coco/r50_panoptic"), the path of a .yaml file, or a
            configuration.
        weights: a checkpoint of any origin (file, folder or URL); by default the one that the configuration names,
            the shipped one, or the released one, which is then downloaded.
        device: "cuda", "cpu", ...; by default a GPU where there is one.
        opts: `KEY, VALUE, ...` that override the configuration.

    Raises:
        FileNotFoundError, ValueError: an unknown configuration or key, missing weights, a device that is not there.
    """
    cfg = load_cfg(config_or_name, opts)
    if device is not None or "MODEL.DEVICE" not in opts:
        cfg.MODEL.DEVICE = resolve_device(device)
    name = "" if isinstance(config_or_name, CfgNode) else str(config_or_name)
    cfg.MODEL.WEIGHTS = str(weights) if weights else find_weights(cfg, name, opts)
    return GroundingPredictor(cfg)


def describe_non_finite(model: nn.Module, weights: str = "") -> str:
    """Why a model answers with NaN or infinite values: its weights (of the file `weights`), or something else."""
    faulty = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if not faulty:
        return (
            "the model answers with NaN or infinite values, though its weights are finite; run it in float32, and "
            f"look whether the weights{f' {weights!r}' if weights else ''} fit the configuration"
        )
    source = f"the checkpoint {weights!r}" if weights else "the model's weights"
    tensors = f"{len(faulty)} tensor" + ("s" if len(faulty) > 1 else "")
    return (
        f"{source} cannot be used: {tensors} ({', '.join(faulty[:3])}{', ...' if len(faulty) > 3 else ''}) hold NaN or "
        "infinite values, so the predictions do too; take a checkpoint from before the training went wrong"
    )


def _segments_on_cpu(answer: dict[str, Any], not_wanted: Sequence[int]) -> dict[str, Any]:
    """The panoptic and semantic results that an answer has; segments that are not wanted become 0, none."""
    found: dict[str, Any] = {}
    if "panoptic_seg" in answer:
        ids, segments = answer["panoptic_seg"]
        ids = ids.cpu()
        dropped = [segment["id"] for segment in segments if segment["category_id"] in not_wanted]
        if dropped:
            ids = ids.masked_fill(torch.isin(ids, ids.new_tensor(dropped)), 0)
            segments = [segment for segment in segments if segment["category_id"] not in not_wanted]
        found["panoptic_seg"] = (ids, segments)
    if "sem_seg" in answer:
        found["sem_seg"] = answer["sem_seg"].cpu()
    return found


def _named(found: Instances, names: Sequence[str], not_wanted: Sequence[int], choice: DetectionChoice) -> Instances:
    """The detections that are chosen, with `labels`."""
    queries = found.query_indices if found.has("query_indices") else torch.arange(len(found))
    boxes = found.pred_boxes.tensor.float().numpy()
    rows = choice.rows(
        found.scores.float().numpy(), found.pred_classes.numpy(), queries.numpy(), boxes, names, not_wanted
    )
    found = found[torch.from_numpy(rows)]
    if found.has("query_indices"):
        found.remove("query_indices")
    found.labels = Labels(names[i] for i in found.pred_classes.tolist())
    return found
