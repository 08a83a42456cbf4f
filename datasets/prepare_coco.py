#!/usr/bin/env python
"""Unpack and check COCO 2017; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.coco import main

if __name__ == "__main__":
    sys.exit(main())
