"""Pictures and prompts in, detections out, of an exported model, without torch: numpy, Pillow, tokenizers, a runtime.

predictor = OnnxPredictor("shapes_tiny.onnx")  # which tools/export_model.py has written
found = predictor("street.jpg", categories=["car", "traffic light"])
found.pred_boxes, found.scores, found.labels
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from grounding_dino.detection_choice import DetectionChoice
from grounding_dino.exported.dense import DensePicture
from grounding_dino.exported.description import ClassDescription, ModelDescription
from grounding_dino.exported.detections import Answer, Array, Detections, Size, best_pairs, caption_queries, joined
from grounding_dino.exported.masks import MaskFrame, with_masks
from grounding_dino.exported.runtimes import load_runtime
from grounding_dino.pictures import PicturePreparation, RgbArray, is_single, to_rgb
from grounding_dino.prompt_arguments import Asked, class_prompts, prompts_of
from grounding_dino.structures import InstanceList, Prompt
from grounding_dino.text.phrases import name_phrases
from grounding_dino.text.prompt_arrays import stack_prompts
from grounding_dino.text.prompt_builder import PromptBuilder
from grounding_dino.text.tokenizer import build_tokenizer
from grounding_dino.thresholds import BOX_THRESHOLD, TEXT_THRESHOLD, Threshold, check_thresholds

import numpy as np

# The index of a picture, and one of its prompts, or the classes of a model without text.
Pair = tuple[int, Prompt | ClassDescription]


class OnnxPredictor:
    """`GroundingPredictor` of an exported file: the same call, the same detections, in numpy arrays.

    Names that take several prompts run the whole model once for each of them, the backbone included. Of a model with
    masks it gives instances alone, also where the configuration asked for panoptic or semantic results.

    Attributes:
        description: what the file says of its model.
    """

    def __init__(
        self, path: str | os.PathLike[str], runtime: str = "onnxruntime", batch_size: int = 8, **options: Any
    ) -> None:
        """
        Args:
            path: an .onnx file that tools/export_model.py has written.
            runtime: "onnxruntime" or "openvino".
            batch_size: pictures of one size that run together at most.
            options: of the runtime, see :class:`OnnxRuntime` and :class:`OpenVinoRuntime`.

        Raises:
            FileNotFoundError, ValueError, ImportError: no such file, one of another origin, or no such runtime.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give a positive number of pictures")
        self.path = str(path)
        self.batch_size = batch_size
        self._runtime = load_runtime(path, runtime, **options)
        self.description: ModelDescription = self._runtime.description
        if self.description.masks is not None and not self.description.masks.instance:
            raise ValueError(
                f"the model of {self.path!r} gives panoptic or semantic results alone, which need torch; export it "
                "with TEST.INSTANCE_ON True"
            )
        text = self.description.text
        self.prompts = (
            None
            if text is None
            else PromptBuilder(build_tokenizer(text.vocabulary), text.max_tokens, text.sub_sentence)
        )
        self._preparation = PicturePreparation(
            self.description.min_size, self.description.max_size, self.description.input_format
        )

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names that a model of fixed classes finds; None for a model with text."""
        return None if self.description.classes is None else self.description.classes.names

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
        """Detect in one picture or in a list of them, with the arguments of `GroundingPredictor`.

        Returns:
            :class:`Detections` in the original picture's size, best first, a list of them for a list.

        Raises:
            TypeError, ValueError, FileNotFoundError: as `GroundingPredictor` raises them.
        """
        single = is_single(images)
        prepared = [self.prepare(to_rgb(image, image_format)) for image in ([images] if single else images)]
        results = self.detect(prepared, categories, caption, box_threshold, text_threshold, best_label_only, not_wanted)
        return results[0] if single else results

    def prepare(self, picture: RgbArray) -> dict[str, Any]:
        """`image` (3, h, w) of uint8, resized, and the `height` and `width` of the picture (H, W, 3), to answer in."""
        return {"image": self._preparation.resized(picture), "height": picture.shape[0], "width": picture.shape[1]}

    def detect(
        self,
        prepared: Sequence[dict[str, Any]],
        categories: Sequence[str] | Sequence[Sequence[str]] | None = None,
        caption: str | Sequence[str] | None = None,
        box_threshold: Threshold = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        best_label_only: bool = True,
        not_wanted: Sequence[str] | Sequence[Sequence[str]] | None = None,
    ) -> list[Detections]:
        """As a call, in pictures that `prepare` made inputs of, here or in another process; always a list."""
        check_thresholds(box_threshold, text_threshold, caption)
        asked = self._asked(categories, caption, not_wanted, len(prepared))
        choice = DetectionChoice(box_threshold, best_label_only)
        inputs = [{**picture, **prompt} for picture, prompt in zip(prepared, asked)]
        least = [choice.least(prompt.get("categories", self.classes) or ("",)) for prompt in asked]
        return [
            self._named(found, prompt, choice, text_threshold)
            for found, prompt in zip(self.answers(inputs, least), asked)
        ]

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
        for asked in self._asked(categories, caption, not_wanted, None):
            self._prompts(asked)

    def _asked(self, categories: Any, caption: Any, not_wanted: Any, count: int | None) -> list[Asked]:
        if self.classes is None:
            return prompts_of(categories, caption, not_wanted, count)
        return class_prompts(self.classes, categories, caption, not_wanted, count)

    def _prompts(self, asked: Asked) -> Sequence[Prompt | ClassDescription]:
        """What a picture is asked for: prompts, several where its categories do not fit in one, or the classes."""
        if self.description.classes is not None:
            return [self.description.classes]
        assert self.prompts is not None and self.description.text is not None
        if "caption" in asked:
            return [self.prompts.of_caption(asked["caption"])]
        return self.prompts.of_categories(asked["categories"], self.description.text.names_per_prompt)

    # ------------------------------------------------------------------------------------------------- running

    def answers(self, inputs: Sequence[dict[str, Any]], least: Sequence[float] | None = None) -> list[Detections]:
        """The best (query, category) pairs of each picture, as evaluations read them, before any choice among them.

        Args:
            inputs: what `prepare` gives, with `categories` or `caption`.
            least: of each picture, what scores have to exceed; None keeps all.

        Raises:
            ValueError: the model answers with NaN; or a text that no prompt can hold.
        """
        parts: list[list[Detections]] = [[] for _ in inputs]
        sizes = [self._frame(picture["image"]) for picture in inputs]
        for owner, part in self._parts(inputs, sizes):
            parts[owner].append(part)
        results = []
        for i, picture in enumerate(inputs):
            found = joined(parts[i], self.description.detections_per_image)
            if least is not None:
                found = found[found.scores > least[i]]
            results.append(self._with_masks(found, picture, sizes[i]))
        return results

    def _parts(self, inputs: Sequence[dict[str, Any]], frames: Sequence[Size]) -> Iterator[tuple[int, Detections]]:
        """The index of a picture, and what was found of one of its prompts; those of a picture in their order."""
        groups: dict[Size, list[int]] = defaultdict(list)
        for i, frame in enumerate(frames):
            groups[frame].append(i)
        count: dict[int, int] = defaultdict(int)  # queries of a picture's prompts before
        for frame, members in groups.items():
            pairs = [(i, prompt) for i in members for prompt in self._prompts(inputs[i])]
            for start in range(0, len(pairs), self.batch_size):
                batch = pairs[start : start + self.batch_size]
                for (i, asked), answer in zip(batch, self._run(inputs, frame, batch)):
                    found = self._read(answer, asked, inputs[i], frame)
                    if self.description.dense is None:  # whose places are the same for all prompts
                        found = found.of_later_queries(count[i])
                    count[i] += len(answer.pred_logits)
                    yield i, found

    def _frame(self, image: Array) -> Size:
        """(h, w) of a picture with the padding that the model asks for."""
        divisor = max(1, self.description.size_divisibility)
        height, width = image.shape[1:]
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def _run(self, inputs: Sequence[dict[str, Any]], frame: Size, batch: Sequence[Pair]) -> Iterator[Answer]:
        """The model's answers for pictures of one size and their prompts."""
        images = np.zeros((len(batch), 3, *frame), dtype=np.float32)
        padding_mask = np.ones((len(batch), *frame), dtype=np.bool_)
        for row, (i, _) in enumerate(batch):
            image = inputs[i]["image"]
            images[row, :, : image.shape[1], : image.shape[2]] = image
            padding_mask[row, : image.shape[1], : image.shape[2]] = False
        given: dict[str, Array] = {"images": images, "padding_mask": padding_mask}
        texts = [asked for _, asked in batch if isinstance(asked, Prompt)]
        if texts:
            text = stack_prompts(texts)
            given.update(input_ids=text.input_ids, position_ids=text.position_ids)
            given.update(text_padding_mask=text.padding_mask, text_attention_mask=text.attention_mask)
        outputs = self._runtime.run({name: given[name] for name in self._runtime.input_names})
        known = [field.name for field in dataclasses.fields(Answer) if field.name in outputs]
        for row in range(len(batch)):
            answer = Answer(**{name: outputs[name][row] for name in known})
            try:
                answer.check_finite()
            except FloatingPointError as error:
                raise ValueError(f"{error}: look at the weights that {self.path!r} was exported from") from error
            yield answer.of_real_queries()

    def _read(
        self, answer: Answer, asked: Prompt | ClassDescription, picture: dict[str, Any], frame: Size
    ) -> Detections:
        """The best pairs of one picture and prompt, in its original size."""
        size = (int(picture["height"]), int(picture["width"]))
        image_size = picture["image"].shape[1:]
        limit = self.description.detections_per_image
        of_caption = isinstance(asked, Prompt) and "categories" not in picture
        if self.description.dense is not None:
            assert isinstance(asked, Prompt)
            place = DensePicture(self.description.dense, frame, image_size, size)
            return place.of_caption(answer, limit) if of_caption else place.of_categories(answer, asked, limit)
        if self.description.padding_counts and frame != image_size:
            y, x = (padded / seen for padded, seen in zip(frame, image_size))
            answer = dataclasses.replace(answer, pred_boxes=answer.pred_boxes * np.array([x, y, x, y], np.float32))
        return caption_queries(answer, size) if of_caption else best_pairs(answer, asked, size, limit)

    # ------------------------------------------------------------------------------------------------- results

    def _with_masks(self, found: Detections, picture: dict[str, Any], frame: Size) -> Detections:
        masks, classes = self.description.masks, self.description.classes
        if masks is None or found.mask_logits is None:
            return found
        if masks.panoptic and classes is not None and classes.things is not None:
            found = found[np.isin(np.asarray(found.pred_classes), classes.things)]  # what else there is are segments
        image_size = picture["image"].shape[1:]
        place = MaskFrame(
            frame if self.description.padding_counts else image_size, image_size, (picture["height"], picture["width"])
        )
        return with_masks(found, place, masks.mask_scores)

    def _named(self, found: Detections, asked: Asked, choice: DetectionChoice, text_threshold: float) -> Detections:
        """What a call returns for one picture: what is chosen of the pairs, with names."""
        names = asked.get("categories", self.classes)
        least = choice.least(names or ("",))
        found = found[found.scores > least]  # again, since masks lower scores
        if names is None:
            assert self.prompts is not None and found.token_logits is not None
            prompt = self.prompts.of_caption(asked["caption"])
            phrases = name_phrases(found.token_logits, prompt, self.prompts.tokenizer, text_threshold)
            found = dataclasses.replace(found, phrases=InstanceList(phrases))
        else:
            assert found.pred_classes is not None and found.query_indices is not None
            of_pairs = (found.scores, found.pred_classes, found.query_indices, found.pred_boxes)
            rows = choice.rows(*of_pairs, names, asked.get("not_wanted", ()))
            labels = InstanceList(names[i] for i in found.pred_classes[rows].tolist())
            found = dataclasses.replace(found[rows], labels=labels)
        return dataclasses.replace(found, query_indices=None, token_logits=None)
