"""Drawing on pictures, numpy arrays (H, W, 3) RGB: colours, text, places for labels, outlines and masks.

It knows neither torch nor Detectron2. :mod:`grounding_dino.visualization` draws a predictor's results with it, and the
compact Detectron2 its pictures, so that both look alike whichever Detectron2 is installed.
"""
