"""Real photos at every size: how many change their label from full to protected, as they are and behind a platform.

    python data/measure/sizes.py --checkpoint psic-q3 --json data/results/sizes.json

A label is the likeliest of ImageNet's 1,000 names; nothing else need be known of a photo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from open_clip import IMAGENET_CLASSNAMES
from torch import Tensor
from torchvision.transforms.functional import resize
from tqdm import tqdm

from psic_core.app.tables import sizes_table
from psic_core.codec import PSIC
from psic_core.datasets import DataSet
from psic_core.datasets.eval_sets import EvalSet, eval_set, scaled
from psic_core.lab.evaluate import pack_flips, write_json
from psic_core.lab.passes import Reader, Texts, read
from psic_core.lab.processing import PLATFORMS, Picture, Processed, Processing, cropped
from psic_core.lab.tasks import class_weights
from psic_core.metrics import count_flips
from psic_core.models.images import round_to_8_bits, through_file
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance

PUBLISHED = "as published"
SHOWN = ("plain", "full", "protected", "jpeg", "noise")  # the null: full, JPEG and noise at the protected PSNR
FEED = 1080  # pixels on the longer side that a platform shows


def for_a_feed(x: Picture) -> Processed:
    """A longer side of `FEED` pixels at most, saved as JPEG 80."""
    size = [max(1, round(side * min(1, FEED / max(x.shape[-2:])))) for side in x.shape[-2:]]
    return through_file(round_to_8_bits(resize(x, size, 3, antialias=True)), "JPEG", quality=80)


HANDED_ON: Mapping[str, Processing] = {
    PUBLISHED: lambda x: x,
    **{name: PLATFORMS[name] for name in ("JPEG 75", "JPEG 30", "half size and back")},
    "1,080 px, JPEG 80": for_a_feed,
    "crop to 90 %": cropped(0.9),
}


def size_curve(
    model: PSIC,
    plain: PSIC,
    sets: Sequence[EvalSet],
    target: Target,
    sides: Sequence[int],
    budgets: Sequence[float] = (),
    cache: Path | None = None,
) -> dict[str, Any]:
    """Count labels that change.

    Args:
        model: PSIC, with its secret.
        plain: The plain codec of the same rate.
        sets: Photos as they are.
        target: The reader.
        sides: Shorter sides in pixels to which photos are scaled down; those that are smaller do not count. 0: as they
            are.
        budgets: Of the shield; none: the model's own.
        cache: Folder of finished passes.

    Returns:
        ``rows``: for each set, side and budget the number ``n`` of photos, ``psnr[version]`` to the original and
        ``change`` of protected against full in dB, the mean cosine ``likeness`` of protected and full, and
        ``flips[platform][version]`` as `pack_flips` writes them: of all photos, those that have another label than the
        plain codec's picture as published. JSON-ready.
    """
    names = class_weights(Texts(target, cache), tuple(IMAGENET_CLASSNAMES), [lambda c: f"a photo of a {c}"])
    readers = [Reader(f"{target.name}, {name}", target, partial(_look, target, p)) for name, p in HANDED_ON.items()]
    rows = []
    for data in sets:
        shorter = [min(data.picture(i).shape[-2:]) for i in tqdm(range(data.size), data.name, disable=None)]
        for side in sides:
            chosen = _at(data, [i for i, length in enumerate(shorter) if length >= side], side)
            for budget in budgets or (model.config.budget,) if chosen.size else ():
                model.config = replace(model.config, budget=budget)
                passes = read(model, plain, chosen, readers, cache, SHOWN)
                seen = {name: p.seen for name, p in zip(HANDED_ON, passes, strict=True)}
                likeness = torch.cosine_similarity(seen[PUBLISHED]["full"], seen[PUBLISHED]["protected"])
                row = {"dataset": data.name, "side": side, "budget": budget, "n": chosen.size}
                row |= {"psnr": {v: float(p.mean()) for v, p in passes[0].psnr.items()}}
                row |= {"change": float(passes[0].change.mean()), "likeness": float(likeness.mean())}
                rows.append(row | {"flips": _flips(seen, names)})
    return {"target": target.name, "rows": rows, "provenance": provenance()}


def _at(data: EvalSet, chosen: Sequence[int], side: int) -> EvalSet:
    """Some photos of a set, with a shorter side of so many pixels."""
    at = (lambda i: scaled(data.picture(chosen[i]), side)) if side else (lambda i: data.picture(chosen[i]))
    return EvalSet(f"{data.name}, {side or 'native'}", len(chosen), at)


def _look(target: Target, process: Processing, pictures: Tensor) -> Tensor:
    return torch.cat([target.encode_image(process(x)) for x in pictures.split(1)])


def _flips(seen: Mapping[str, Mapping[str, Tensor]], names: Tensor) -> dict[str, dict[str, dict[str, str]]]:
    label = (seen[PUBLISHED]["plain"] @ names.T).argmax(1)
    same = {name: {v: (f @ names.T).argmax(1) == label for v, f in by.items()} for name, by in seen.items()}
    always = torch.ones_like(label, dtype=torch.bool)
    return {name: {v: pack_flips(count_flips(always, s)) for v, s in by.items()} for name, by in same.items()}


@dataclass(frozen=True)
class Sizes:
    """Count the photos whose label changes from full to protected, by size, budget and platform."""

    json: Path  # the report
    dataset: tuple[DataSet, ...] = ("kodak", "camera", "held-out")  # photos, as large as they are
    checkpoint: str = "psic-q4"  # file or shipped name
    target: str = "lite-clip"  # the model that reads the pictures
    side: tuple[int, ...] = (160, 240, 320, 512, 1024, 0)  # shorter sides in pixels to scale down to; 0: as they are
    budget: tuple[float, ...] = ()  # most that a photo may be changed; none named: the model's own
    cache: Path | None = None  # folder that keeps what was measured: a second run takes seconds
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT)
    limit: int | None = None  # the first so many pictures of each

    def run(self) -> None:
        """Count, write and print."""
        model, plain = load_checkpoint(self.checkpoint), load_checkpoint(self.checkpoint, plain=True)
        sets = [eval_set(name, self.data_root, self.limit, side=0) for name in self.dataset]
        report = size_curve(model, plain, sets, load_target(self.target), self.side, self.budget, self.cache)
        write_json({"checkpoint": self.checkpoint} | report, self.json)
        print(sizes_table(report))


if __name__ == "__main__":
    tyro.cli(Sizes).run()
