#!/usr/bin/env python
"""Save a model as a folder with a card, push it to a hub, pull models from there; see --help."""

import sys

from grounding_dino.cli.hub import main

if __name__ == "__main__":
    sys.exit(main())
