"""GLIP's head: one prediction for every place of a feature pyramid."""
