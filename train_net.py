#!/usr/bin/env python
"""Train, resume or evaluate: `python train_net.py --help`."""

from grounding_dino.cli.train import main

if __name__ == "__main__":
    main()
