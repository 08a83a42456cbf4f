"""The command line of a training script. Without torch, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys

_FIRST_PRIVATE_PORT = 2**15 + 2**14  # 49152: ports from here on are assigned to nobody
_PRIVATE_PORTS = 2**14


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of a training script."""
    script = sys.argv[0]
    examples = f"""
Examples:

Train on one machine:
    $ {script} --num-gpus 8 --config-file cfg.yaml

Change values of the config:
    $ {script} --config-file cfg.yaml MODEL.WEIGHTS /path/to/weights.pth SOLVER.BASE_LR 0.001

Train on several machines:
    (machine0)$ {script} --machine-rank 0 --num-machines 2 --dist-url tcp://HOST:PORT [other flags]
    (machine1)$ {script} --machine-rank 1 --num-machines 2 --dist-url tcp://HOST:PORT [other flags]
"""
    parser = argparse.ArgumentParser(epilog=epilog or examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, with optimizer, schedule and iteration",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate only, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs (processes) on each machine")
    parser.add_argument("--num-machines", type=int, default=1, help="total number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    # One user's jobs meet at one port, and two users' likely at two.
    user = os.getuid() if hasattr(os, "getuid") else 1
    port = _FIRST_PRIVATE_PORT + hash(user) % _PRIVATE_PORTS
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes meet: tcp://HOST:PORT of the first machine, or 'auto' on a single one",
    )
    parser.add_argument(
        "opts",
        help="values that override the config, as pairs at the end of the command: KEY1 VALUE1 KEY2 VALUE2",
        default=None,
        nargs=argparse.REMAINDER,
    )
    return parser
