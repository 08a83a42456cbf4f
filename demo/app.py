#!/usr/bin/env python
"""A web page that detects in uploaded pictures what a text names; see --help."""

import sys

from grounding_dino.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
