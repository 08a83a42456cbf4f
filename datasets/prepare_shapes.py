#!/usr/bin/env python
"""Render the shapes data set; `--help` lists the flags, datasets/README.md the files it writes."""

from grounding_dino.data.shapes.prepare import main

if __name__ == "__main__":
    main()
