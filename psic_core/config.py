"""Configuration: frozen dataclasses, paths, seeds and the device. Ground floor: imports nothing of ours."""

import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch

#: Passphrase of the models that the course ships. Public on purpose: see "What PSIC protects against" in README.
PUBLIC_PASSPHRASE = "psic course"
PUBLIC_SECRET = bytes.fromhex("569504ed4a10831bd38c5dd71b1d0c8d")  # `keys.secret` of it, which takes 0.3 s

#: lambda of each rate: CompressAI's for MSE, qualities 1 to 4. The paper names none (four levels, Sec. 4).
RATES = {1: 0.0018, 2: 0.0035, 3: 0.0067, 4: 0.0130}

Stage = Literal["plain", "one", "two"]
Objective = Literal["uaeo", "literal", "random_target", "naive", "authors"]
Precision = Literal["auto", "bfloat16", "float32"]


def repo_dir() -> Path:
    """The clone's root folder: the parent of ``psic_core`` (the project is installed editable)."""
    return Path(__file__).resolve().parents[1]


def data_dir() -> Path:
    """What ships with the project: ``data/scenes``, ``data/checkpoints``, ``data/results``."""
    return repo_dir() / "data"


def data_root(given: str | Path | None = None) -> Path:
    """The folder of the large data sets that never ship (Flickr8k, Kodak, CelebA, ImageNet).

    Args:
        given: The value of ``--data-root``; the environment variable ``PSIC_DATA_ROOT`` else.

    Raises:
        FileNotFoundError: Neither is set, or the folder does not exist.
    """
    root = given or os.environ.get("PSIC_DATA_ROOT")
    if not root:
        raise FileNotFoundError(
            "no data root: pass --data-root DIR or set PSIC_DATA_ROOT=DIR to the folder that holds "
            "flickr8k/, kodak/, celeba/, imagenet_sample/"
        )
    if not Path(root).is_dir():
        raise FileNotFoundError(f"data root {str(root)!r} is not a folder; check --data-root or PSIC_DATA_ROOT")
    return Path(root)


class NoSuchDeviceError(ValueError):
    """A device that this machine does not have; Jupyter shows the sentence alone."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def device(name: str | None = None) -> "torch.device":
    """The device for training and reading; entropy coding always runs on the CPU.

    Args:
        name: ``cpu`` or ``cuda``; the environment variable ``PSIC_DEVICE`` else; a GPU if there is one else.

    Raises:
        NoSuchDeviceError: It is not there.
    """
    import torch  # here, so that the command line need not wait for it

    there = ["cpu", *["cuda"] * torch.cuda.is_available()]
    name = name or os.environ.get("PSIC_DEVICE") or there[-1]
    if name not in there:
        raise NoSuchDeviceError(f"no device {name!r}: this machine has {' and '.join(there)}; name one, or none")
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class CodecConfig:
    """What a PSIC model is built from; stored in the checkpoint's metadata."""

    architecture: str = "bmshj2018-hyperprior"  # a name in compressai.zoo.image_models
    n: int = 64  # channels of g_a, g_s inside (CompressAI: 128 at low rates)
    m: int = 96  # channels of the latent y (CompressAI: 192)
    quality: int = 2  # label of the rate point, up to 255, in the file's header
    dim: int = 64  # length of the condition vector beta
    hidden: int = 64  # width of each trigger's MLP
    ladder: int = 24  # channels of the generator's state beside the picture, see `triggers.Rung`; 0: the paper's CLTG
    budget: float | None = None  # most a photo may be changed, see `models.delta.energy`; None: as the triggers will
    reading_side: int = 160  # R: a larger photo gets the triggers that its copy of this shorter side would get
    anchored: bool = True  # the key's trigger is zero: the full version *is* the plain codec (see README)

    @classmethod
    def stored(cls, fields: Mapping[str, Any]) -> "CodecConfig":
        """A checkpoint's configuration; fields that former versions had are passed over."""
        return cls(**{k: v for k, v in fields.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True)
class TrainConfig:
    """One training phase. The paper's stage 1 is `one`, stage 2 is `two`; `plain` is the backbone.

    Losses, with distortion in units of 255^2:
        full       lmbda * 255^2 * MSE(x_hat_f, x) + R                       S1-1, S2-1 without R
        protected  lmbda * (255^2 * mu * MSE(x_hat_e, x) + gamma * L_UC) + R     S1-2, S2-2 without R
    """

    stage: Stage = "plain"  # the backbone alone, or the paper's stage 1 or 2
    steps: int = 1000  # of an optimiser, one batch each
    batch_size: int = 8  # of all processes together
    crop: int = 128  # pixels, a multiple of 16 in stage two (windows of the cached latents)
    learning_rate: float = 1e-3  # Adam's, after the warm-up
    final_learning_rate: float = 1e-5  # the cosine schedule's end
    trigger_rate: float = 5.0  # the triggers' learning rate, as a multiple: they start from zero
    warmup: int = 50  # steps of linear warm-up
    lmbda: float = 0.0035  # weight of the distortion against the rate; 0.0035 is CompressAI's quality 2
    gamma: float = 50.0  # weight of L_UC; the paper's text reads 1, next to which the MSE is everything
    first_budget: float | None = None  # in the first step; falls by the same factor to the model's at 4/5 of the steps
    mu: float = 1.0  # weight of MSE_e; 0 is the paper's literal S2-2, which lets the picture go
    masking: float = 0.0  # weight of an MSE_e that counts flat regions most: the eye sees the attack there
    grid: float = 0.0  # weight of `objectives.grid_mse` as a share of the budget, after the first quarter of the steps
    trains: Literal["triggers", "codec"] = "triggers"  # what S1-2 and S2-2 may train; the paper: all of the codec
    eot: float = 0.0  # share of protected pictures that the target sees as a platform hands them on
    s: float = 0.07  # temperature of Eq. 5 and Eq. 9
    tau: float = 1.0  # the other temperature of Eq. 5
    pool: int = 64  # K of Eq. 5 to 8: cached pairs make it independent of the batch size
    direction: Literal["i2t", "both"] = "i2t"  # of the cross-entropy; Eq. 9 is i2t
    objective: Objective = "uaeo"  # Eq. 9, or another: `objectives.attack_loss` says what each is
    clip_grad: float = 1.0  # longest gradient
    precision: Precision = "auto"  # of the networks; bfloat16 where the device gains, see `schedule.autocast_dtype`
    seed: int = 0  # of everything that is drawn
    save_every: int = 250  # steps between states to resume from
    log_every: int = 1  # steps between rows of the log; each makes the host wait for the GPU
    workers: int | None = None  # processes that cut crops of photos; None: one for each core but two, 1 to 14

    def __post_init__(self) -> None:
        """Refuse what would train nothing or crash late."""
        for name, options in (
            ("stage", get_args(Stage)),
            ("direction", ("i2t", "both")),
            ("objective", get_args(Objective)),
            ("trains", ("triggers", "codec")),
            ("precision", get_args(Precision)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(options)}")
        if not 0 <= self.eot <= 1:
            raise ValueError(f"eot is {self.eot}; it is a share of the pictures, from 0 to 1")
        for name in ("steps", "batch_size", "crop", "learning_rate", "lmbda", "s", "tau", "save_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a cosine to ``final_learning_rate``."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        swing = (1 + math.cos(math.pi * done)) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * swing

    def budget_at(self, step: int, last: float) -> float:
        """The budget at a step: the attack learns with much, then with less and less, and a fifth with the last."""
        first = self.first_budget or last
        return first * (last / first) ** min(1, 1.25 * step / max(1, self.steps - 1))

    def fast(self) -> "TrainConfig":
        """The same recipe, cut to seconds for tests and notebooks."""
        return replace(self, steps=min(self.steps, 8), batch_size=4, crop=64, pool=16, warmup=2, save_every=4)


@dataclass(frozen=True)
class Phase:
    """What one training phase starts from and sees; `TrainConfig` says how it learns."""

    dataset: tuple[str, ...] = ("scenes",)  # or flickr8k, folders; photos alone: crops; shards:PATTERN alone: a stream
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT)
    init: str | None = None  # checkpoint; plain:CHECKPOINT, zoo:ARCHITECTURE/QUALITY: fresh triggers; None: random
    kind: Literal["psic", "plain"] | None = None  # plain: no triggers; None: plain for stage plain, else psic
    target: str = "lite-clip"  # not loaded for a plain model
    scenes: int = 2560
    pictures: int | None = None  # train on about so many, evenly spread; stage two encodes each once before it starts
    size: int = 160  # side of the pictures in pixels
    codec: CodecConfig = field(default_factory=CodecConfig)  # of random weights, and the triggers of a zoo model
    readers: int = 2  # processes that read a stream of shards, beside each training process
