"""What `datasets/prepare_*.py` do: unpack downloads, convert what is no COCO json, check that the sets load."""
