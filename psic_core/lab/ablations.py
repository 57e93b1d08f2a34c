"""Objectives, choices and rivals: what each is, and how far its strength is swept; the trainings of PSIC's own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_PASSPHRASE, TrainConfig, seed_everything
from psic_core.training.checkpoints import load_checkpoint, read_card, save_checkpoint
from psic_core.training.phase import SHIELD, Phase, run_phase

BASE = TrainConfig("two", 240, 6, 160, learning_rate=1e-3, warmup=20, gamma=56, pool=32, save_every=1000, **SHIELD)
SCENES = 600  # training pictures


@dataclass(frozen=True)
class Variant:
    """One change to `BASE`."""

    what: str
    train: Mapping[str, Any] = field(default_factory=dict)
    codec: Mapping[str, Any] = field(default_factory=dict)
    before: TrainConfig | None = None  # a phase that comes first
    target: str | None = None  # trained against this; measured, as all are, on the bench's


_CODEC = {"trains": "codec", "learning_rate": 3e-4, "trigger_rate": 5.0}  # at 1e-3 the decoder itself diverges
VARIANTS = {
    "uaeo": Variant("what the shipped models were trained with: UAEO both ways, gated residual triggers, anchored key"),
    "naive": Variant("no target caption: the cosine to the own one is minimised", {"objective": "naive", "gamma": 280}),
    "random": Variant("a random caption as target", {"objective": "random_target"}),
    "authors": Variant("what the released code computes", {"objective": "authors", "gamma": 280}),
    "literal": Variant("nothing masked, as printed", {"objective": "literal"}),
    "row-only": Variant("Eq. 6 without the captions' side", {"row_only": True}),
    "decl": Variant("Eq. 5 as in its source, DECL: s = 1, tau = 0.1", {"preset": "decl"}),
    "i2t": Variant("UAEO as printed, pictures against captions alone", {"direction": "i2t"}),
    "centred": Variant("evidence divided by each caption's mean (hubness)", {"center": True}),
    "pool-8": Variant("K = 8 captions to choose the target from", {"pool": 8}),
    "pool-128": Variant("K = 128", {"pool": 128}),
    "s-0.03": Variant("a sharper temperature s in Eq. 5 and 9", {"s": 0.03}),
    "s-0.2": Variant("a softer one", {"s": 0.2}),
    "tau-0.1": Variant("a sharper evidence, tau = 0.1 in Eq. 5 alone", {"tau": 0.1}),
    "unmasked": Variant("plain MSE alone", {"masking": 0.0}),
    "additive": Variant("the paper's triggers: constants only", codec={"residual": 0}),
    "after-y": Variant("one trigger, after y_hat", codec={"injections": 1}),
    "after-y-additive": Variant("likewise, a constant only", codec={"injections": 1, "residual": 0}),
    "slim": Variant("residual blocks a quarter as wide", codec={"residual": 8}),
    "wide": Variant("residual blocks twice as wide, as far as the features have channels", codec={"residual": 64}),
    "moved": Variant("the attack trains the whole decoder", _CODEC, {"anchored": False}),
    "moved-sessions": Variant(
        "likewise, the objectives alternate by half epochs", _CODEC | {"schedule": "sessions"}, {"anchored": False}
    ),
    "moved-mixed": Variant(
        "likewise, both objectives in each step", _CODEC | {"schedule": "mixed"}, {"anchored": False}
    ),
    "moved-fidelity": Variant(
        "as moved, with a feature-fidelity term on the full version", _CODEC | {"fidelity": 600}, {"anchored": False}
    ),
    "paper": Variant("constants only, whole decoder", _CODEC, {"residual": 0, "anchored": False}),
    "eot": Variant("the model sees every picture as a platform hands it on", {"eot": 1.0}),
    "ensemble": Variant("two models are attacked as one", target="lite-clip+lite1-clip"),
    "stage-one": Variant(
        "240 steps of stage one with attack before it",
        before=replace(BASE, stage="one", crop=128, learning_rate=1e-4, trigger_rate=8.0),
    ),
}
SHIPPED = "psic-q2"  # without its triggers, the codec that every point starts from
RIVALS = {
    "shipped": f"{SHIPPED} as it ships, trained longer; its triggers are scaled",
    "bavaft": "BAvAFT: a trigger in the input's DCT, encoder trained, decoder as it was",
    "pgd-before": "PGD on the photo, then the plain codec",
    "pgd-through": "PGD on the photo, gradients through the plain codec",
    "pgd-after": "PGD on the decoded picture: a bound, not a codec",
}
BAVAFT = {"learning_rate": 3e-3, "fidelity": 300}  # its changes to `BASE`: the trigger has to become visible first
#: gamma of the trained methods; for PGD the PSNR in dB of the perturbed picture to the one before it.
SWEEPS = {
    "shipped": (0.5, 0.75, 1.0),
    "i2t": (15, 30, 56),
    "uaeo": (15, 30, 56, 112),
    "naive": (140, 280, 560),
    "random": (56, 112),
    "authors": (280,),  # equals naive here, to the last bit: see notebook 07
    "literal": (56,),
    "bavaft": (60, 120, 240),
    "pgd-before": (32, 28, 24),
    "pgd-through": (32, 28),
    "pgd-after": (40, 36),
}
SEEDED = ("i2t@30", "uaeo@56", "naive@280", "naive@560")  # with three seeds


class Point(NamedTuple):
    """One run: ``METHOD``, ``METHOD@STRENGTH`` or ``METHOD@STRENGTH#SEED``."""

    method: str
    strength: float
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.method}@{self.strength:g}" + (f"#{self.seed}" if self.seed else "")


def point(name: str) -> Point:
    """Read a point's name; without a strength it is the variant's own gamma, or the middle of a rival's sweep.

    Raises:
        ValueError: No such method, or not of the form.
    """
    match = re.fullmatch(r"([\w.-]+)(?:@([\d.]+))?(?:#(\d+))?", name)
    method = match[1] if match else name
    if not match or method not in VARIANTS | RIVALS:
        raise ValueError(f"unknown variant {name!r}; write METHOD[@STRENGTH][#SEED], METHOD one of "
                         + ", ".join(VARIANTS | RIVALS))  # fmt: skip
    default = VARIANTS[method].train.get("gamma", BASE.gamma) if method in VARIANTS else SWEEPS[method][1]
    return Point(method, float(match[2] or default), int(match[3] or 0))


def points() -> list[Point]:
    """All that `psic ablate` makes: every variant once, the sweeps, further seeds."""
    names = [*VARIANTS, *(f"{m}@{s}" for m, sweep in SWEEPS.items() for s in sweep)]
    names += [f"{name}#{seed}" for seed in (1, 2) for name in SEEDED]
    order = [*VARIANTS, *RIVALS]
    return sorted({point(n) for n in names}, key=lambda p: (order.index(p.method), p.seed, p.strength))


def phase_config(p: Point) -> TrainConfig:
    """How a trained point learns."""
    changes = VARIANTS[p.method].train if p.method in VARIANTS else BAVAFT
    return replace(BASE, **dict(changes) | {"gamma": p.strength, "seed": p.seed})


def trained(p: Point, folder: Path, target: str) -> tuple[PSIC, float]:
    """The model of a PSIC point and the seconds of its last phase; trains it where ``folder`` lacks it."""
    path, variant, config = folder / str(p) / "model.safetensors", VARIANTS[p.method], phase_config(p)
    target = variant.target or target
    if not path.is_file():
        start = folder / f"{p}-start.safetensors"
        _fresh_triggers(start, variant.codec, p.seed)
        phase = Phase(("scenes",), init=str(start), kind="psic", target=target, scenes=SCENES)
        if variant.before:
            run_phase(replace(variant.before, seed=p.seed), phase, folder / f"{p}-before")
            phase = replace(phase, init=str(folder / f"{p}-before" / "model.safetensors"))
        run_phase(config, phase, folder / str(p))
    last = read_card(path)["card"]["history"][-1]
    if TrainConfig(**last["config"]) != config or last["target"] != target:
        raise ValueError(f"{path} was trained otherwise ({last['config']}, {last['target']}); choose another --out")
    return load_checkpoint(path), last["seconds"]


def _fresh_triggers(path: Path, changes: Mapping[str, Any], seed: int) -> None:
    """Write the plain codec with new triggers, of a changed configuration."""
    seed_everything(seed)
    plain = load_checkpoint(SHIPPED, plain=True)
    model = PSIC.build(replace(plain.config, **changes), keys.secret(PUBLIC_PASSPHRASE))
    model.load_state_dict({n: t for n, t in plain.state_dict().items() if "triggers" not in n}, strict=False)
    save_checkpoint(model, path, publish_secret=True)
