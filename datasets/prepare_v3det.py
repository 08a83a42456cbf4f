#!/usr/bin/env python
"""Unpack and check V3Det; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.v3det import main

if __name__ == "__main__":
    sys.exit(main())
