"""Query selection, denoising and decoders; importing this package registers the decoders."""

from grounding_dino.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from grounding_dino.modeling.transformer_decoder.decoder import DINODecoder
from grounding_dino.modeling.transformer_decoder.query_selection import QuerySelection

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "DINODecoder", "QuerySelection", "build_transformer_decoder"]
