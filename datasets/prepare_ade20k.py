#!/usr/bin/env python
"""Unpack ADE20K, and make its maps and json files; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.ade20k import main

if __name__ == "__main__":
    sys.exit(main())
