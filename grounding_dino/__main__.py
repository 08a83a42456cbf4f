"""`python -m grounding_dino COMMAND ...`: the same as `grounding-dino COMMAND ...`."""

import sys

from grounding_dino.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
