#!/usr/bin/env python
"""Unpack Cityscapes, and make its maps and json files; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.cityscapes import main

if __name__ == "__main__":
    sys.exit(main())
