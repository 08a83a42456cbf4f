#!/usr/bin/env python
"""Label a folder, a list, tar shards or parquet files of pictures: COCO, YOLO, Pascal VOC and ODVG; see --help."""

import sys

from grounding_dino.cli.label_images import main

if __name__ == "__main__":
    sys.exit(main())
