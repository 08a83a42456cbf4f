#!/usr/bin/env python
"""Unpack and check the data sets of ODinW; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.odinw import main

if __name__ == "__main__":
    sys.exit(main())
