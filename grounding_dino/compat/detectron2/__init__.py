"""A compact Detectron2: the names this project uses, with upstream's signatures and defaults.

Used only where upstream Detectron2 is not installed (see `grounding_dino/__init__.py`). Built on fvcore, iopath,
pycocotools and torchvision; no rotated boxes, keypoints or ROI heads.
"""

__version__ = "0.6+compat"
