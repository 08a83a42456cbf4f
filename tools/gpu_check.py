#!/usr/bin/env python
"""Check the CUDA kernels, the model and its training on this machine's GPU; see --help."""

import sys

from grounding_dino.cli.gpu_check import main

if __name__ == "__main__":
    sys.exit(main())
