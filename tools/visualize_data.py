#!/usr/bin/env python
"""Draw what a model sees in training; see --help."""

import sys

from grounding_dino.cli.visualize_data import main

if __name__ == "__main__":
    sys.exit(main())
