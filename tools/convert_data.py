#!/usr/bin/env python
"""Convert annotation files between COCO, ODVG, MDETR and referring expressions; see --help."""

import sys

from grounding_dino.cli.convert_data import main

if __name__ == "__main__":
    sys.exit(main())
