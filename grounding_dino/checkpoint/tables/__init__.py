"""One renaming table an origin and model. A table is a list of rules; see :mod:`grounding_dino.checkpoint.rules`."""
