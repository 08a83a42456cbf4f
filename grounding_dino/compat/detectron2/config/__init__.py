"""Configuration: the `CfgNode` tree, its defaults, and building objects from it."""

from detectron2.config.config import CfgNode, configurable, get_cfg

__all__ = ["CfgNode", "configurable", "get_cfg"]
