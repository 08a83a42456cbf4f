#!/usr/bin/env python
"""Convert gRefCOCO; `--help` lists the flags, datasets/README.md the files it reads and writes."""

from grounding_dino.data.datasets.grefcoco_json import main

if __name__ == "__main__":
    main()
