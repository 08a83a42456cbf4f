#!/usr/bin/env python
"""Make COCO json files of OpenImages; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.openimages import main

if __name__ == "__main__":
    sys.exit(main())
