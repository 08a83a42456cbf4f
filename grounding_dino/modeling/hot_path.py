"""Faster execution of the parts of a detector that see every picture: torch.compile, and CUDA graphs."""

from __future__ import annotations

import dataclasses
from typing import Any

from grounding_dino.modeling.cuda_graphs import ShapeGraphs
from grounding_dino.modeling.input_projection import pad_pyramid
from grounding_dino.structures import DecoderOutput, FeaturePyramid, TextFeatures
from grounding_dino.text.batch import pad_text

from detectron2.config import CfgNode
from torch import Tensor, nn

# Modules of the detectors here that work on every picture; the text encoder's features are kept.
PARTS = (
    *("backbone", "input_projection", "pixel_decoder", "query_selection", "transformer_decoder"),
    *("pyramid", "tower", "head"),
)
LEVEL_MULTIPLE = 8  # cells of the finest level that buckets count in; half as many on each coarser one
TEXT_MULTIPLE = 16  # tokens


def speed_up(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """`model` with what TEST.COMPILE_ON and TEST.CUDA_GRAPHS_ON ask for, changed in place."""
    if cfg.TEST.COMPILE_ON:
        compile_parts(model)
    if cfg.TEST.CUDA_GRAPHS_ON:
        use_cuda_graphs(model)
    return model


def compile_parts(model: nn.Module, **options: Any) -> list[str]:
    """Compile the PARTS that a model has, in place: names of weights and checkpoints stay. Their names.

    The first picture waits for the compiler, and so does the first one of another size, after which torch compiles for
    any size. Backbones are compiled for each size alone, torch's `recompile_limit` of sizes (8), and run as they are
    for others: a size that is rounded up to windows and halved in every stage is a formula whose symbols take the
    compiler minutes.

    Args:
        options: of `torch.compile`.
    """
    compiled = [name for name in PARTS if isinstance(getattr(model, name, None), nn.Module)]
    for name in compiled:
        sizes = {"dynamic": False} if name == "backbone" else {}
        getattr(model, name).compile(**(sizes | options))
    return compiled


def use_cuda_graphs(model: Any, graphs: type[ShapeGraphs] = ShapeGraphs) -> None:
    """Let the model replay CUDA graphs where shapes come again, instead of launching each kernel from the host.

    Backbones run in each picture's own size, since padding would change features, so theirs are graphs of exact sizes.
    What follows the backbone masks padding out: it runs in buckets of sizes (`BucketedFind`).
    """
    weights = next(model.parameters())

    def state() -> Any:
        return weights.data_ptr(), weights.dtype  # another after `.to()`, which graphs would not follow

    for name in ("_project", "extract_features", "head_outputs"):
        # of a model of the DINO family `extract_features` takes lists of pictures, and calls `_project`
        if hasattr(model, name) and not (name == "extract_features" and hasattr(model, "_project")):
            setattr(model, name, graphs(getattr(model, name), state))
    if hasattr(model, "find"):
        model.find = BucketedFind(model, graphs(model.find, state))


class BucketedFind:
    """`GeneralizedDINO.find` with inputs padded to buckets, so that few graphs serve pictures of many sizes.

    Padding is masked, so results are those of the picture itself within rounding. A picture with fewer tokens than
    queries, whose surplus would depend on the bucket, and models with masks, which treat each picture's own part of
    the maps on the host, run in their own sizes.
    """

    def __init__(self, model: Any, graphs: ShapeGraphs) -> None:
        self.model = model
        self.graphs = graphs

    def __call__(self, features: FeaturePyramid, text: TextFeatures | None) -> DecoderOutput:
        """As `GeneralizedDINO.find`."""
        if self.model.training or self.model.masks is not None:
            return self.graphs.function(features, text)
        queries = self.model.query_selection.num_queries if hasattr(self.model.query_selection, "num_queries") else 0
        if features.fewest_tokens < queries:
            return self.graphs.function(features, text)
        length = 0 if text is None else text.embeddings.shape[1]
        if text is not None:
            text = pad_text(text, -length % TEXT_MULTIPLE)
        # what only the host reads, and differs from picture to picture, would make every picture's graph its own
        padded = dataclasses.replace(pad_pyramid(features, LEVEL_MULTIPLE), frames=(), fewest_tokens=queries)
        output: DecoderOutput = self.graphs(padded, text)
        return output if text is None else _without_columns(output, length)


def _without_columns(output: DecoderOutput, length: int) -> DecoderOutput:
    """Logits of the first `length` text tokens alone."""

    def cut(logits: Tensor) -> Tensor:
        return logits[..., :length]

    return dataclasses.replace(
        output, layers=[dataclasses.replace(p, pred_logits=cut(p.pred_logits)) for p in output.layers]
    )
