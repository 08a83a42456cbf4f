#!/usr/bin/env python
"""Unpack LVIS v1 and make minival; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.lvis import main

if __name__ == "__main__":
    sys.exit(main())
