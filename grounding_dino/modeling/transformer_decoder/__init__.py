"""Query selection, denoising and decoders; importing this package registers the decoders."""

from grounding_dino.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from grounding_dino.modeling.transformer_decoder.decoder import DINODecoder
from grounding_dino.modeling.transformer_decoder.query_selection import (
    LearnedQueries,
    QuerySelection,
    build_query_selection,
)

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "DINODecoder",
    "LearnedQueries",
    "QuerySelection",
    "build_query_selection",
    "build_transformer_decoder",
]
