#!/usr/bin/env python
"""Detect what a text names in pictures, folders, a video or a webcam; see --help."""

import sys

from grounding_dino.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
