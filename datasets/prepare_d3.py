#!/usr/bin/env python
"""Read D3's scenarios out of its pickles; `--help` lists the flags, datasets/README.md the files."""

from grounding_dino.data.datasets.described_json import main

if __name__ == "__main__":
    main()
