#!/usr/bin/env python
"""Convert a checkpoint between the formats of its publishers; see --help."""

import sys

from grounding_dino.cli.convert_weights import main

if __name__ == "__main__":
    sys.exit(main())
