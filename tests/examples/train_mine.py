"""train_net.py with parts of one's own: importing them registers them, in every process."""

import sys

from grounding_dino.cli.train import main

import conv_backbone  # noqa: F401
import cosine_head  # noqa: F401
import csv_data_set  # noqa: F401

if __name__ == "__main__":
    sys.exit(main())
