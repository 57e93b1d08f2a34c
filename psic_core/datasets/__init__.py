"""Data sets: the embedded *scenes*, and real ones from a data root."""

from typing import Literal, get_args

#: What `eval_sets.eval_set` and ``--dataset`` take. It stands here because this file imports nothing of ours.
DataSet = Literal[
    "scenes",
    "flickr8k",
    "flickr8k-dev",
    "celeba",
    "imagenet",
    "coco",
    "kodak",
    "camera",
    "held-out",
    "photos",
    "captioned",
]
DATASETS: tuple[str, ...] = get_args(DataSet)
