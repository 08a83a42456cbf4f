#!/usr/bin/env python
"""Find the least score that a detection of each category needs, from labelled pictures; see --help."""

import sys

from grounding_dino.cli.calibrate_thresholds import main

if __name__ == "__main__":
    sys.exit(main())
