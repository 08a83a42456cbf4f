#!/usr/bin/env python
"""Look through data sets before a training; see --help."""

import sys

from grounding_dino.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main())
