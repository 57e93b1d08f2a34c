"""The threat model, level by level: every attack on one bench, beside its null.

python data/measure/limits.py psic-q3 --json data/results/limits.json
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.ndimage import median_filter
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from tyro.conf import Positional

from psic_core.app.tables import limits_table
from psic_core.codec import PSIC
from psic_core.config import seed_everything
from psic_core.datasets.eval_sets import eval_set
from psic_core.datasets.scenes import Scenes
from psic_core.lab.evaluate import write_json
from psic_core.lab.limits import BATCH, LEVELS, PLAIN, Pictures, Robustness
from psic_core.lab.processing import PLATFORMS, Picture, Processed, Processing, recoded
from psic_core.lab.rivals import descend, finetune_reader, random_conditions, solve, stripped
from psic_core.models.delta import NOTHING
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import load_target
from psic_core.training.checkpoints import load_checkpoint, provenance

UNSEEN = "lite2-clip"  # a reader that no shield was trained against
OWN = 300  # pictures that a rival protects himself, of the training scenes
PURIFYING = 1000  # steps of a purifier's training


def filtered(denoise: Callable[[np.ndarray], np.ndarray]) -> Processing:
    """A filter of scipy or scikit-image on ``(H, W, 3)`` floats in [0, 1]."""

    def process(x: Picture) -> Processed:
        cleaned = denoise(x[0].permute(1, 2, 0).numpy().astype(np.float64))
        return round_to_8_bits(torch.from_numpy(cleaned).float().permute(2, 0, 1)[None])

    return process


#: What someone does who wants the shield gone and has tools for noise, none for this.
DENOISERS: Mapping[str, Processing] = {
    "median 3 × 3": filtered(lambda x: median_filter(x, size=(3, 3, 1))),
    "total variation": filtered(lambda x: denoise_tv_chambolle(x, weight=0.05, channel_axis=-1)),
    "non-local means": filtered(lambda x: denoise_nl_means(x, 5, 6, h=0.04, channel_axis=-1)),
}


class Purifier(nn.Module):
    """A residual denoiser: DnCNN (Zhang et al., TIP 2017) on pixels folded two by two, as in FFDNet (ibid., 2018).

    Folding quarters the time and doubles what a pixel of the answer sees. The last layer starts at zero: a fresh
    purifier is the identity.
    """

    FOLD, WIDTH, DEPTH = 2, 48, 6

    def __init__(self) -> None:
        super().__init__()
        ends = 3 * self.FOLD**2
        sizes = [ends, *[self.WIDTH] * (self.DEPTH - 1), ends]
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)]
        nn.init.zeros_(convolutions[-1].weight)
        nn.init.zeros_(convolutions[-1].bias)
        self.layers = nn.Sequential(*[layer for c in convolutions for layer in (c, nn.ReLU())][:-1])

    def forward(self, x: Pictures) -> Pictures:
        """Purified pictures in [0, 1], of any size."""
        return self.cleaned(x).clamp(0, 1)

    def cleaned(self, x: Pictures) -> Pictures:
        """The same before clamping, which has no gradient outside [0, 1]."""
        height, width = x.shape[-2:]
        folded = functional.pixel_unshuffle(pad_to(x, self.FOLD), self.FOLD)
        return x + functional.pixel_shuffle(self.layers(folded), self.FOLD)[..., :height, :width]


def train_purifier(protected: Pictures, full: Pictures, steps: int = PURIFYING) -> Purifier:
    """Learn the way back from pairs of versions.

    The loss is ``255^2 MSE(p, x_hat_f)``.

    Args:
        protected: The rival's own x_hat_e, at 8 bits, as published.
        full: The x_hat_f of the same files, in the same order.
        steps: Of Adam (`descend`), with 8 crops of at most 96 pixels a side.

    Returns:
        In eval mode, without gradients.
    """
    rng, crop = torch.Generator().manual_seed(0), min(96, *full.shape[-2:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        purifier = Purifier().to(full)

    def loss() -> Tensor:
        index = torch.randperm(len(full), generator=rng)[:8]
        top, left = (int(torch.randint(side - crop + 1, (), generator=rng)) for side in full.shape[-2:])
        given, wanted = (v[index, :, top : top + crop, left : left + crop] for v in (protected, full))
        return 255**2 * functional.mse_loss(purifier.cleaned(given), wanted)

    descend(torch.optim.Adam(purifier.parameters(), 1e-3), loss, steps)
    return purifier.eval().requires_grad_(False)


def run_limits(
    names: Sequence[str],
    limit: int,
    target: str = "lite-clip",
    levels: Sequence[str] = tuple(LEVELS),
    side: int = 160,
) -> dict[str, Any]:
    """Attack several models on the same held-out scenes.

    Args:
        names: Checkpoints of anchored PSIC, over one encoder; the first without its triggers is the plain codec.
        limit: Held-out scenes.
        target: The reader that the shields were made for.
        levels: Some of `LEVELS`.
        side: Of the pictures in pixels.

    Returns:
        ``rows`` as `Robustness.add` makes them, and what they were measured on; JSON-ready.

    Raises:
        ValueError: No model, or an unknown level.
    """
    if not names:
        raise ValueError("no model to attack: name at least one checkpoint")
    if wrong := [level for level in levels if level not in LEVELS]:
        raise ValueError(f"levels {', '.join(wrong)}: choose from {', '.join(LEVELS)}")
    seed_everything(0)
    models = {_label(name): load_checkpoint(name) for name in names}
    if len(models) < len(names):
        raise ValueError(f"{', '.join(names)}: two models of one name; rename a file or its folder")
    data = eval_set("scenes", limit=limit, side=side)
    suite = Robustness(models, load_checkpoint(names[0], plain=True), data, load_target(target))
    for level in tqdm(levels, "levels", disable=None):
        RUNS[level](suite)
    about = {"models": list(models), "target": target, "dataset": data.name, "n": data.size, "side": side}
    return about | {"rows": suite.rows, "provenance": provenance()}


def _label(name: str) -> str:
    """A checkpoint's name; that of its folder where it is a run's ``model.safetensors``."""
    path = Path(name)
    return path.parent.name if path.name == "model.safetensors" else path.stem


def own_photos(side: int) -> tuple[Pictures, list[tuple[str, ...]]]:
    """What a rival protects himself: training scenes of that many pixels a side, with their captions."""
    scenes = Scenes("train", OWN, side)
    return torch.stack([scenes[i].image for i in range(OWN)]), [scenes.captions(i) for i in range(OWN)]


@torch.no_grad()
def own_versions(model: PSIC, side: int) -> tuple[Pictures, Pictures]:
    """`own_photos` protected and full, at 8 bits, for which a rival needs no key: he leaves the triggers out."""
    size, (x, _) = (side, side), own_photos(side)
    y_hat = [model.quantised_latents(pad_to(part, model.factor)) for part in x.split(BATCH)]
    protected, full = (
        torch.cat([round_to_8_bits(model.picture(y, size, adapted=adapted)) for y in y_hat])
        for adapted in (None, NOTHING)
    )
    return protected, full


def _unseen(suite: Robustness) -> None:
    """A reader that nothing was trained against; the null is JPEG at the first model's PSNR."""
    reader = load_target(UNSEEN)
    read = reader.encode_images(suite.bench.decoded).cpu()
    suite.add("unseen", f"read by {reader.name}", suite.shown | {PLAIN: suite.jpeg()}, reader, read)


def _rival(suite: Robustness) -> None:
    """He protects photos of his own with each model: pairs for a purifier, protected pictures for a reader.

    All are of the bench's size, 160 px where nothing else is asked for: the shield of a larger photo is made there and
    enlarged, so that this is the purifier to fear, whatever the photo's size.
    """
    target = suite.bench.target
    x, captions = own_photos(suite.bench.x.shape[-1])
    y_hat = suite.bench.latents(suite.bench.plain, x)
    full = suite.bench.decode(suite.bench.plain, y_hat)
    first = next(iter(suite.models.values()))
    changed = {v: stripped(suite.models.get(v, first), shown) for v, shown in suite.shown.items()}
    suite.add("rival", "coded again, triggers left out", changed)
    for name, model in suite.models.items():
        protected = suite.bench.decode(model, y_hat)
        purifier = train_purifier(protected, full, PURIFYING)
        cleaned = {
            v: torch.cat([round_to_8_bits(purifier(p)) for p in shown.split(20)]) for v, shown in suite.shown.items()
        }
        suite.add("rival", f"purifier, made with {name}", cleaned)
        adapted = finetune_reader(target, protected, captions)
        suite.add("rival", f"model's heads trained on {name}", suite.shown, reader=adapted)


def _stream(suite: Robustness) -> None:
    bench, models = suite.bench, suite.models
    wrong = random_conditions(1, next(iter(models.values())).config.dim, seed=7)[0]
    solved = {v: solve(m).condition for v, m in models.items()}
    for attack, chosen in (
        ("a wrong keyword", dict.fromkeys(models, wrong)),
        ("the triggers' equations, solved", solved),
    ):
        cosines = {v: float(c @ models[v].full_condition() / c.norm()) for v, c in chosen.items()}
        changed = {v: bench.decode(models[v], bench.y_hat, condition=c) for v, c in chosen.items()}
        suite.add("stream", attack, changed | {PLAIN: bench.decoded}, cosine=cosines)
    cut = dict.fromkeys(models, bench.decode(bench.plain, bench.y_hat))
    suite.add("stream", "every trigger left out of the program", cut | {PLAIN: bench.decoded})


RUNS: Mapping[str, Callable[[Robustness], None]] = {
    "none": Robustness.nothing,
    "unseen": _unseen,
    "platforms": lambda s: s.process("platforms", {**PLATFORMS, "coded again, plain": recoded(s.bench.plain)}),
    "denoisers": lambda s: s.process("denoisers", DENOISERS),
    "rival": _rival,
    "stream": _stream,
}


@dataclass(frozen=True)
class Limits:
    """Attack the shield: post-processing, unseen models, rivals who adapt, searches for the key."""

    json: Path  # the report
    checkpoints: Positional[tuple[str, ...]] = ("psic-q4",)  # over one encoder
    target: str = "lite-clip"  # the model that they were made against
    levels: tuple[str, ...] = ()  # some of the threat model's levels; none named: all
    limit: int = 150  # held-out scenes
    side: int = 160  # of the scenes in pixels: the models' own, at which the shield of a larger photo is made too

    def run(self) -> None:
        """Attack, write and print."""
        report = run_limits(self.checkpoints, self.limit, self.target, self.levels or tuple(LEVELS), self.side)
        write_json(report, self.json)
        print(limits_table(report))


if __name__ == "__main__":
    tyro.cli(Limits).run()
