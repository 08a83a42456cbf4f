"""What can be converted into what, by name, for command lines: `grounding_dino.data.convert` itself imports torch."""

FORMATS = ("coco", "odvg", "mdetr", "refexp")
NAME_MODES = ("auto", "all", "present")  # which class names the sentences of MDETR list
