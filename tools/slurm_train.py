#!/usr/bin/env python
"""Train on a SLURM cluster; see --help."""

import sys

from grounding_dino.cli.slurm_train import main

if __name__ == "__main__":
    sys.exit(main())
