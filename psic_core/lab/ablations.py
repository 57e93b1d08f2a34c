"""What is compared on equal terms: objectives, triggers and rivals, how far each is swept, and how each is trained."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_PASSPHRASE, Phase, TrainConfig, seed_everything
from psic_core.training.checkpoints import load_checkpoint, read_card, save_checkpoint
from psic_core.training.phase import SHIELD, run_phase, with_triggers

BASE = TrainConfig("two", 240, 6, 160, learning_rate=1e-3, warmup=20, pool=32, save_every=1000, **SHIELD)
SCENES = 600  # training pictures
SHIPPED = "psic-q2"  # without its triggers, the codec that every method starts from
_CODEC = {"trains": "codec", "learning_rate": 3e-4, "trigger_rate": 5.0}  # at 1e-3 the decoder itself diverges


@dataclass(frozen=True)
class Method:
    """A row of the comparison."""

    what: str
    strengths: tuple[float, ...]  # gamma; for PGD the PSNR in dB of the perturbed picture to the one before it
    train: Mapping[str, Any] = field(default_factory=dict)  # changes to `BASE`
    codec: Mapping[str, Any] = field(default_factory=dict)  # changes to the shipped model's configuration
    seeds: int = 3


METHODS = {
    "shipped": Method(f"{SHIPPED} as it ships, its triggers scaled", (0.5, 0.75, 1.0), seeds=1),
    "uaeo": Method("PSIC, UAEO as printed (Eq. 9)", (15, 30, 56), {"direction": "i2t"}),
    "uaeo-both": Method("PSIC, UAEO in both directions", (15, 30, 56)),
    "naive": Method("PSIC, naive: away from the own caption", (140, 280, 560), {"objective": "naive"}),
    "random": Method("PSIC, a random caption as target", (30, 56), {"objective": "random_target"}),
    "authors": Method("PSIC, what the released code computes", (140, 280), {"objective": "authors"}),
    "additive": Method("PSIC, the paper's CLTG (Eq. 4): constants only", (30, 56), codec={"residual": 0, "ladder": 0}),
    "moved": Method("PSIC, the attack trains the whole decoder", (30, 56), _CODEC, {"anchored": False}),
    "bavaft": Method("BAvAFT: a trigger in the input, encoder trained", (60, 120, 240), {"learning_rate": 3e-3}),
    "pgd-before": Method("PGD on the photo, then the plain codec", (32, 28, 24), seeds=1),
    "pgd-through": Method("PGD on the photo, gradients through the plain codec", (32, 28), seeds=1),
    "pgd-after": Method("PGD on the decoded picture: a bound, not a codec", (40, 36), seeds=1),
}


class Point(NamedTuple):
    """One run: ``METHOD``, ``METHOD@STRENGTH`` or ``METHOD@STRENGTH#SEED``."""

    method: str
    strength: float
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.method}@{self.strength:g}" + (f"#{self.seed}" if self.seed else "")


def point(name: str) -> Point:
    """Read a point's name; without a strength it is the method's strongest but one.

    Raises:
        ValueError: No such method, or not of the form.
    """
    match = re.fullmatch(r"([\w.-]+)(?:@([\d.]+))?(?:#(\d+))?", name)
    if not match or match[1] not in METHODS:
        raise ValueError(f"unknown point {name!r}; write METHOD[@STRENGTH][#SEED], METHOD one of {', '.join(METHODS)}")
    return Point(match[1], float(match[2] or METHODS[match[1]].strengths[1]), int(match[3] or 0))


def points() -> list[Point]:
    """All that `psic ablate` makes, method by method."""
    return [Point(n, float(s), seed) for n, m in METHODS.items() for seed in range(m.seeds) for s in m.strengths]


def phase_config(p: Point) -> TrainConfig:
    """How a trained point learns."""
    return replace(BASE, **METHODS[p.method].train, gamma=p.strength, seed=p.seed)


def trained(p: Point, folder: Path, target: str) -> tuple[PSIC, float]:
    """The model of a PSIC point and its seconds of training; trains it where ``folder`` lacks it.

    Raises:
        ValueError: The folder's was trained otherwise.
    """
    path, config = folder / str(p) / "model.safetensors", phase_config(p)
    if not path.is_file():
        seed_everything(p.seed)
        plain, start = load_checkpoint(SHIPPED, plain=True), folder / f"{p}-start.safetensors"
        plain.secret = keys.secret(PUBLIC_PASSPHRASE)
        sizes = {"budget": None, **METHODS[p.method].codec}  # strengths are gammas: no bound decides in their place
        fresh = with_triggers(plain, replace(plain.config, **sizes))
        fresh.kind = "psic"
        save_checkpoint(fresh, start, publish_secret=True)
        run_phase(config, Phase(("scenes",), init=str(start), kind="psic", target=target, scenes=SCENES), path.parent)
    last = read_card(path)["card"]["history"][-1]
    if last["config"] != asdict(config) or last["target"] != target:
        raise ValueError(f"{path} was trained otherwise ({last['config']}, {last['target']}); choose another --out")
    return load_checkpoint(path), last["seconds"]
