"""The Grounding DINO authors' inference functions, for scripts written against theirs.

    from grounding_dino.inference import load_model, load_image, predict, annotate  # was: groundingdino.util.inference

Names, arguments, sizes, thresholds and phrases are the authors'. Two things are easier: the device may be left out
(a GPU where there is one, else the CPU), and a checkpoint of any origin loads. For new code see
:mod:`grounding_dino.predictor`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grounding_dino.layers.box_ops import box_cxcywh_to_xyxy
from grounding_dino.model_zoo import build_model, load_cfg, resolve_device
from grounding_dino.pictures import RgbArray, read_picture
from grounding_dino.predictor import describe_non_finite
from grounding_dino.structures import Predictions, Prompt
from grounding_dino.text.phrases import decode_phrases, phrases_to_categories
from grounding_dino.text.prompt import preprocess_caption
from grounding_dino.text.tokenizer import WordPieceTokenizer

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    import supervision

logger = logging.getLogger(__name__)

__all__ = ["Model", "annotate", "load_image", "load_model", "predict", "preprocess_caption"]

SHORTER_SIDE, LONGER_SIDE_MAX = 800, 1333
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of values in [0, 1]


def load_model(model_config_path: str, model_checkpoint_path: str, device: str | None = None) -> nn.Module:
    """Build a model and load its checkpoint.

    Args:
        model_config_path: a .yaml configuration or its short name; or the path of the authors' .py
            configuration, which is recognised by its file name and neither needed nor executed.
        model_checkpoint_path: a checkpoint of any origin.
        device: by default a GPU where there is one, else the CPU.

    Raises:
        ValueError: the configuration is of a model without text, or of another kind than Grounding DINO; or as
            :func:`load_cfg` and checkpoints raise it.

    A configuration whose pictures have another size than the authors' is warned of: `load_image` knows no model, and
    resizes to the authors' size always.
    """
    cfg = load_cfg(model_config_path)
    if not cfg.MODEL.TEXT_ENCODER.NAME:
        raise ValueError(
            f"{model_config_path} is a model of fixed classes, which reads no text; load_predictor runs it"
        )
    from grounding_dino.modeling.meta_arch import GeneralizedDINO  # takes seconds, which `load_image` need not wait

    from detectron2.modeling import META_ARCH_REGISTRY

    architecture = cfg.MODEL.META_ARCHITECTURE
    if not issubclass(META_ARCH_REGISTRY.get(architecture), GeneralizedDINO):
        raise ValueError(_of_another_kind(f"{model_config_path} is a {architecture}"))
    if cfg.INPUT.MIN_SIZE_TEST != SHORTER_SIDE:
        logger.warning(
            "%s is made for pictures with a shorter side of %d pixels, but load_image and Model give %d, as the "
            "authors' do, which may find less; GroundingPredictor resizes as the configuration says",
            model_config_path,
            cfg.INPUT.MIN_SIZE_TEST,
            SHORTER_SIDE,
        )
    cfg.MODEL.DEVICE = resolve_device(device)
    return build_model(cfg, weights=model_checkpoint_path)


def resized_size(width: int, height: int) -> tuple[int, int]:
    """The (width, height) that the authors bring a picture to: shorter side 800, longer at most about 1333.

    The shorter side is rounded first and the longer one computed from it, cut to an integer; Detectron2 rounds
    otherwise.
    """
    shorter, longer = min(width, height), max(width, height)
    target = SHORTER_SIDE
    if longer / shorter * target > LONGER_SIDE_MAX:
        target = max(round(LONGER_SIDE_MAX * shorter / longer), 1)  # no side may vanish
    if shorter == target:
        return width, height
    if width < height:
        return target, int(target * height / width)
    return int(target * width / height), target


def normalise_picture(picture: RgbArray) -> Tensor:
    """An RGB picture -> the model's (3, H, W) float tensor, in the authors' size."""
    resized = Image.fromarray(picture).resize(
        resized_size(picture.shape[1], picture.shape[0]), Image.Resampling.BILINEAR
    )
    values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1)


def load_image(image_path: str) -> tuple[RgbArray, Tensor]:
    """Read a picture: as an RGB array (H, W, 3), and as the normalised tensor (3, h, w) that `predict` takes.

    As in the authors' code, pixels are taken as stored: an EXIF orientation is not applied (`GroundingPredictor`
    applies it).
    """
    picture = read_picture(image_path, upright=False)
    return picture, normalise_picture(picture)


def predict(
    model: nn.Module,
    image: Tensor,
    caption: str,
    box_threshold: float,
    text_threshold: float,
    device: str | None = None,
    remove_combined: bool = False,
) -> tuple[Tensor, Tensor, list[str]]:
    """Ground a caption in one picture.

    Args:
        image: (3, H, W) from `load_image`.
        device: where to run; by default where the model is.
        remove_combined: never join words of two phrases of the caption.

    Returns:
        boxes (N, 4) cxcywh in [0, 1], their scores (N,), and N phrases, in the order of the model's queries. As in
        the authors' code a phrase is "" where no token exceeds `text_threshold`.
    """
    if device is not None:
        model = model.to(resolve_device(device))
    prompt, predictions = _run(model, image, caption)
    encoder: Any = model.text_encoder
    return select_detections(
        predictions.pred_logits,
        predictions.pred_boxes,
        prompt,
        encoder.tokenizer,
        box_threshold,
        text_threshold,
        remove_combined,
    )


def _of_another_kind(what: str) -> str:
    return (
        f"{what}, but these functions are those of Grounding DINO's authors: their pictures are normalised for it, and "
        "boxes come from its queries; load_predictor runs the model"
    )


@torch.no_grad()
def _run(model: Any, image: Tensor, caption: str) -> tuple[Prompt, Predictions]:
    """The raw answer for one normalised picture and one caption; ValueError if it is NaN.

    Raises:
        TypeError: a model that these functions are not made for.
    """
    from grounding_dino.modeling.meta_arch import GeneralizedDINO

    if not isinstance(model, GeneralizedDINO):
        raise TypeError(_of_another_kind(f"the model is a {type(model).__name__}"))
    prompt = model.text_encoder.prompts.of_caption(caption)
    features = model.extract_features([image.to(model.device)])
    answer: tuple[Prompt, Predictions] = model.predict(features, [[prompt]])[0][0]
    if answer[1].pred_logits.isnan().any() or not answer[1].pred_boxes.isfinite().all():
        raise ValueError(describe_non_finite(model))
    return answer


def select_detections(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    prompt: Prompt,
    tokenizer: WordPieceTokenizer,
    box_threshold: float,
    text_threshold: float,
    remove_combined: bool = False,
) -> tuple[Tensor, Tensor, list[str]]:
    """The authors' rule: queries whose best token exceeds `box_threshold`, with the tokens over `text_threshold`.

    Args:
        pred_logits: (Q, T) over the prompt's tokens, -inf on padding.
        pred_boxes: (Q, 4).

    Returns:
        boxes (N, 4), scores (N,), phrases, on the CPU.
    """
    scores = pred_logits.float().sigmoid().amax(dim=1)
    keep = scores > box_threshold
    phrases = decode_phrases(pred_logits[keep], prompt, tokenizer, text_threshold, remove_combined)
    return pred_boxes[keep].cpu(), scores[keep].cpu(), phrases


def annotate(image_source: RgbArray, boxes: Tensor, logits: Tensor, phrases: list[str]) -> NDArray[np.uint8]:
    """Draw the result of `predict` on the RGB picture; returns a BGR array, ready for `cv2.imwrite`."""
    from grounding_dino.visualization import draw_detections

    height, width = image_source.shape[:2]
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(_to_pixels(boxes, height, width))
    instances.scores = logits
    instances.phrases = list(phrases)
    texts = [f"{phrase} {score:.2f}" for phrase, score in zip(phrases, logits.tolist())]
    return np.ascontiguousarray(draw_detections(image_source, instances, texts)[..., ::-1])


def _to_pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    """cxcywh in [0, 1] -> XYXY pixels."""
    return box_cxcywh_to_xyxy(boxes.float() * torch.tensor([width, height, width, height], dtype=torch.float32))


class Model:
    """A model and its checkpoint behind two methods that take BGR pictures, as OpenCV reads them.

    Results are `supervision.Detections`, so the package `supervision` is needed here, and only here.
    """

    def __init__(self, model_config_path: str, model_checkpoint_path: str, device: str | None = None) -> None:
        self.model = load_model(model_config_path, model_checkpoint_path, device)
        self.device = resolve_device(device)

    def predict_with_caption(
        self, image: NDArray[np.uint8], caption: str, box_threshold: float = 0.35, text_threshold: float = 0.25
    ) -> tuple[supervision.Detections, list[str]]:
        """Ground a caption in a BGR picture: detections in pixels, and their phrases."""
        boxes, logits, phrases = predict(
            self.model, self.preprocess_image(image), caption, box_threshold, text_threshold, self.device
        )
        return self.post_process_result(image.shape[0], image.shape[1], boxes, logits), phrases

    def predict_with_classes(
        self, image: NDArray[np.uint8], classes: list[str], box_threshold: float, text_threshold: float
    ) -> supervision.Detections:
        """Find classes in a BGR picture; `class_id` counts `classes`, None where a phrase holds none of them."""
        detections, phrases = self.predict_with_caption(image, ". ".join(classes), box_threshold, text_threshold)
        lowered = [name.lower() for name in classes]  # phrases come from the lower-cased caption
        detections.class_id = self.phrases2classes(phrases=phrases, classes=lowered)
        return detections

    @staticmethod
    def preprocess_image(image_bgr: NDArray[np.uint8]) -> Tensor:
        """A BGR picture (H, W, 3) -> the normalised tensor (3, h, w) that `predict` takes."""
        return normalise_picture(np.ascontiguousarray(image_bgr[..., ::-1]))

    @staticmethod
    def post_process_result(source_h: int, source_w: int, boxes: Tensor, logits: Tensor) -> supervision.Detections:
        """Boxes cxcywh in [0, 1] and scores -> detections in the picture's pixels.

        Raises:
            ImportError: the package `supervision` is missing.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "Model gives supervision.Detections, but the package supervision is not installed: "
                "pip install supervision, or use predict() or GroundingPredictor, which do not need it"
            ) from error
        return supervision.Detections(
            xyxy=_to_pixels(boxes, source_h, source_w).numpy(), confidence=logits.float().numpy()
        )

    @staticmethod
    def phrases2classes(phrases: Sequence[str], classes: Sequence[str]) -> NDArray[Any]:
        """(N,) index of the first class that is part of each phrase; None where there is none."""
        return np.array(phrases_to_categories(phrases, classes))
