"""The web page: pictures and words in, drawings, tables and files out. `grounding_dino.cli.app` starts it."""
