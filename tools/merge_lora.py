#!/usr/bin/env python
"""Write adapters and the weights below them as one checkpoint; see --help."""

import sys

from grounding_dino.cli.merge_lora import main

if __name__ == "__main__":
    sys.exit(main())
