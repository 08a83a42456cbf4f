#!/usr/bin/env python
"""Say what this installation consists of and what to fix first; see --help."""

import sys

from grounding_dino.cli.doctor import main

if __name__ == "__main__":
    sys.exit(main())
