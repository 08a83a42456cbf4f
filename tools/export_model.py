#!/usr/bin/env python
"""Write a model for another runtime; see --help."""

import sys

from grounding_dino.cli.export_model import main

if __name__ == "__main__":
    sys.exit(main())
