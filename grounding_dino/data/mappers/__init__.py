"""From data set records to training samples and test inputs; `INPUT.MAPPER` names one of `MAPPER_REGISTRY`."""

from grounding_dino.data.mappers.build import MAPPER_REGISTRY, build_mapper
from grounding_dino.data.mappers.closed_set import InstanceMapper
from grounding_dino.data.mappers.segments import PanopticMapper, SemanticMapper
from grounding_dino.data.mappers.text_detection import TextDetectionMapper

__all__ = [
    "MAPPER_REGISTRY",
    "InstanceMapper",
    "PanopticMapper",
    "SemanticMapper",
    "TextDetectionMapper",
    "build_mapper",
]
