#!/usr/bin/env python
"""Unpack and check Objects365; `--help` lists the flags, datasets/README.md the files."""

import sys

from grounding_dino.data.prepare.objects365 import main

if __name__ == "__main__":
    sys.exit(main())
