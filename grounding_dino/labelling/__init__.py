"""Labelling pictures at scale: any number of pictures in, label files out, whatever happens on the way.

The pictures are listed once (`inputs`, `plan`). Workers label them task by task (`labeller`; `local_workers` on one
machine, `ray_workers` on a cluster), a `run` deals out the tasks and writes each picture's record into a `journal` that
survives being killed. When every picture has its record, label files are written from the journal (`outputs`), in the
order of the list.
"""
