#!/usr/bin/env python
"""Measure speed on this machine; see --help."""

import sys

from grounding_dino.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
