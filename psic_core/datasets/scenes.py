"""The embedded data set *scenes*: photographic cut-outs composed onto grounds and skies.

    split, seed, index -> Plan (plans.py) -> captions, attributes (phrases.py)
                               |
                               +-> pixels (render.py: backgrounds.py, cutouts.py)

Nothing is stored but the cut-outs; every picture is made when it is asked for, in some ten
milliseconds, and always the same. The splits differ in their draws, not in their cut-outs.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from psic_core.datasets.phrases import ATTRIBUTES, attributes, captions
from psic_core.datasets.plans import SPLITS, Plan, check, class_names, class_of, make_plan
from psic_core.datasets.render import LARGEST, SMALLEST, draw, render

__all__ = ["SPLITS", "Scene", "Scenes", "render"]


class Scene(NamedTuple):
    """One picture and all that is known of it."""

    image: Float[Tensor, "3 size size"]  # in [0, 1]
    captions: tuple[str, ...]  # five
    class_name: str
    class_index: int
    attributes: Bool[Tensor, " n_attr"]
    key: str  # "train-0-17": split, seed, index


class Scenes(Dataset):
    """A split of *scenes*.

    Args:
        split: "train", "val" or "test".
        n: Number of pictures. The first n of a longer data set are the same pictures.
        size: Side in pixels, 32-1024. It changes the resolution and nothing else.
        seed: Another seed gives other pictures of the same kind.

    Raises:
        ValueError: Unknown split, n < 1, a size outside 32-1024, or a negative seed.
    """

    def __init__(self, split: str, n: int, size: int = 160, seed: int = 0) -> None:
        check(split, seed, 0)
        if n < 1:
            raise ValueError(f"n {n!r} is not valid; give the number of pictures, at least 1")
        if not SMALLEST <= size <= LARGEST:
            raise ValueError(f"size {size!r} is not valid; give {SMALLEST} to {LARGEST} pixels")
        self.split, self.n, self.size, self.seed = split, n, size, seed

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted; `Scene.class_index` counts in them."""
        return class_names()

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the binary attributes, in the order of `Scene.attributes`."""
        return tuple(ATTRIBUTES)

    @property
    def attribute_prompts(self) -> tuple[tuple[str, str], ...]:
        """A prompt for each attribute's presence and one for its absence."""
        return tuple((positive, negative) for positive, negative, _ in ATTRIBUTES.values())

    def __len__(self) -> int:
        """The number of pictures."""
        return self.n

    def __getitem__(self, index: int) -> Scene:
        """Make picture `index`; negative indices count from the end."""
        plan = self.plan(index)
        pixels = torch.from_numpy(draw(plan, self.size).copy())
        index = range(self.n)[index]
        number = class_of(self.split, self.seed, index)
        return Scene(
            image=pixels.permute(2, 0, 1).float() / 255,
            captions=captions(plan),
            class_name=class_names()[number],
            class_index=number,
            attributes=torch.tensor(attributes(plan)),
            key=f"{self.split}-{self.seed}-{index}",
        )

    def plan(self, index: int) -> Plan:
        """What picture `index` shows, without its pixels.

        Raises:
            IndexError: There is no such picture.
        """
        if not -self.n <= index < self.n:
            raise IndexError(f"index {index} is outside these {self.n} scenes; make n larger")
        return make_plan(self.split, self.seed, range(self.n)[index])

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of picture `index`, without its pixels."""
        return captions(self.plan(index))
