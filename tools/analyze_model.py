#!/usr/bin/env python
"""Parameters, floating-point operations and activation memory of a model, part by part; see --help."""

import sys

from grounding_dino.cli.analyze_model import main

if __name__ == "__main__":
    sys.exit(main())
