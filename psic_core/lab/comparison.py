"""Objectives, triggers and rivals on equal terms: one plain codec, the same pictures, steps and target for each."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_PASSPHRASE, RATES, Phase, TrainConfig, seed_everything
from psic_core.datasets.eval_sets import eval_set
from psic_core.lab.bavaft import BAvAFT, changed_state, load_bavaft, train_bavaft
from psic_core.lab.bench import BATCH, TASKS, Bench
from psic_core.lab.evaluate import no_nan
from psic_core.lab.pgd import coded, pgd, pull_to
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance, read_card, save_checkpoint
from psic_core.training.files import read_tensors, store_tensors, whole
from psic_core.training.pairs import Pairs
from psic_core.training.phase import SHIELD, load_pairs, run_phase, with_triggers

PGD_STEPS = 10
TOLERANCE = 0.25  # dB beyond the end of a curve that its last point still stands for

Points = Sequence[Mapping[str, Any]]

BASE = TrainConfig("two", 240, 6, 160, learning_rate=1e-3, warmup=20, lmbda=RATES[3], pool=32, save_every=1000,
                   **SHIELD)  # fmt: skip
SCENES = 600  # training pictures
SHIPPED = "psic-q3"  # without its triggers, the codec that every method starts from
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
    "uaeo": Method("PSIC, UAEO as printed (Eq. 9)", (15, 30), {"direction": "i2t"}),
    "uaeo-both": Method("PSIC, UAEO in both directions", (15, 30)),
    "naive": Method("PSIC, naive: away from the own caption", (140, 280), {"objective": "naive"}),
    "random": Method("PSIC, a random caption as target", (30, 56), {"objective": "random_target"}),
    "authors": Method("PSIC, what the released code computes", (140, 280), {"objective": "authors"}, seeds=1),
    "additive": Method("PSIC, the paper's CLTG (Eq. 4): constants only", (15, 30), codec={"ladder": 0}),
    "moved": Method("PSIC, the attack trains the whole decoder", (15, 30), _CODEC, {"anchored": False}, seeds=1),
    "bavaft": Method("BAvAFT: a trigger in the input, encoder trained", (30, 60), {"learning_rate": 3e-3}),
    "pgd-before": Method("PGD on the photo, then the plain codec", (34, 30), seeds=1),
    "pgd-through": Method("PGD on the photo, gradients through the plain codec", (38, 35), seeds=1),
    "pgd-after": Method("PGD on the decoded picture: a bound, not a codec", (42, 39), seeds=1),
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


def run_points(names: Sequence[str], folder: Path, out: Path, pictures: int = 300, target: str = "lite-clip") -> None:
    """Run points (default: all) and write what they give, a line of JSON each; lines that are there are kept.

    Args:
        names: As `point` reads them; empty for all that ``out`` does not have yet.
        folder: Of the runs; a trained one is not trained again.
        out: File of JSON lines, in the order of `points`.
        pictures: How many held-out scenes to measure on.
        target: The model under attack.
    """
    kept = {point(line["name"]): line for line in (read_points(out) if out.is_file() else [])}
    chosen = [point(n) for n in names] or [p for p in points() if p not in kept]
    if not chosen:
        return
    order = {known: k for k, known in enumerate(points())}
    out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(load_checkpoint(SHIPPED, plain=True), eval_set("scenes", limit=pictures), load_target(target))
    for p in chosen:
        measured = {"bavaft": _bavaft, "pgd": _pgd}.get(p.method.partition("-")[0], _psic)
        about = {"name": str(p), "method": p.method, "strength": p.strength, "seed": p.seed}
        kept[p] = about | measured(p, bench, folder) | provenance()
        lines = [json.dumps(no_nan(kept[k])) for k in sorted(kept, key=lambda k: (order.get(k, len(order)), k))]
        with whole(out) as partial_file:
            partial_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        asr = "  ".join(f"{task} {100 * e['value']:.1f}" for task, e in kept[p]["asr"].items())
        print(f"{p}  protected {kept[p]['psnr']['protected']:.2f} dB  {asr}", flush=True)


def read_points(path: Path) -> list[dict[str, Any]]:
    """What `run_points` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plain_psnr(found: Points) -> float:
    """PSNR in dB of the plain codec on the bench's pictures."""
    return found[0]["psnr"]["plain"]


def curves(found: Points, method: str, tasks: Sequence[str] = TASKS) -> list[list[tuple[float, float]]]:
    """For each seed of a method: PSNR in dB against the plain codec, and success, mean over tasks; by rising PSNR."""
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for p in (p for p in found if p["method"] == method):
        level = p["psnr"]["protected"] - plain_psnr(found)
        by_seed.setdefault(p["seed"], []).append((level, fmean(p["asr"][t]["value"] for t in tasks)))
    return [sorted(along) for _, along in sorted(by_seed.items())]


def success(found: Points, method: str, level: float, tasks: Sequence[str] = TASKS) -> list[float]:
    """Attack success at one PSNR, a value for each seed that reaches it: linear between the seed's strengths.

    Args:
        found: From `read_points`.
        method: One of `METHODS`.
        level: PSNR of the protected version in dB.
        tasks: Whose mean.
    """
    level -= plain_psnr(found)
    reached = (c for c in curves(found, method, tasks) if c[0][0] - TOLERANCE <= level <= c[-1][0] + TOLERANCE)
    return [float(np.interp(level, *zip(*along, strict=True))) for along in reached]


# --- each kind of point ---------------------------------------------------------------------------------


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


def _psic(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """PSIC, trained in stage two, or shipped with all triggers scaled: one encoding."""
    if p.method == "shipped":
        model = load_checkpoint(SHIPPED)
        for trigger in model.g_s.triggers:  # the key's stay zero
            trigger.cltg.w_d.load_state_dict({k: p.strength * v for k, v in trigger.cltg.w_d.state_dict().items()})
        seconds = sum(phase["seconds"] for phase in model.card["history"])
    else:
        model, seconds = trained(p, folder, bench.target.name)
    protected = bench.decode(model, bench.y_hat)
    report = bench.measure(protected, None if model.config.anchored else bench.decode(model, bench.y_hat, full=True))
    cost = bench.seconds_per_megapixel(lambda x: model.decompress(model.compress(x)))
    return report | {"bpp_both": bench.bpp(model), "seconds_per_megapixel": cost, "training_s": seconds}


def _bavaft(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """BAvAFT: clean and poisoned are two encodings."""
    rival, seconds = trained_bavaft(p, folder, bench.target.name)
    with torch.no_grad():
        poisoned = torch.cat([rival.trigger(x) for x in bench.x.split(BATCH)])
    codec = rival.codec
    protected, full = (bench.decode(codec, bench.latents(codec, x)) for x in (poisoned, bench.x))

    def protect(x: Tensor) -> None:
        codec.compress(x)
        codec.decompress(codec.compress(rival.trigger(x).detach()))

    cost, both = bench.seconds_per_megapixel(protect), bench.bpp(codec, poisoned) + bench.bpp(codec)
    return bench.measure(protected, full) | {"bpp_both": both, "seconds_per_megapixel": cost, "training_s": seconds}


def trained_bavaft(
    p: Point, folder: Path, target: str, scenes: int | None = None, **changes: Any
) -> tuple[BAvAFT, float]:
    """A trained BAvAFT, and the seconds that it took; trains it where ``folder`` lacks it.

    Args:
        p: The point.
        folder: Of the runs.
        target: The model under attack.
        scenes: Training pictures, `SCENES` where ``None``.
        **changes: Fields of `TrainConfig` that are not as in the comparison, such as ``steps``.

    Raises:
        ValueError: The folder's was trained otherwise.
    """
    path, config = folder / f"{p}.safetensors", replace(phase_config(p), **changes)
    if not path.is_file():
        seed_everything(p.seed)
        rival, attacked = BAvAFT(load_checkpoint(SHIPPED, plain=True)), load_target(target)
        row = train_bavaft(rival, _pairs(attacked, folder, scenes), config, attacked)
        about = {"config": json.dumps(asdict(config)), "target": target, "last": json.dumps(row), **provenance()}
        store_tensors({name: t.half() for name, t in changed_state(rival).items()}, path, about)
    about = read_tensors(path)[1]
    if json.loads(about["config"]) != asdict(config) or about["target"] != target:
        raise ValueError(f"{path} was trained otherwise ({about['config']}); choose another --out")
    return load_bavaft(load_checkpoint(SHIPPED, plain=True), path), json.loads(about["last"])["seconds"]


def _pgd(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """PGD: nothing is trained; each picture is attacked for itself, towards a caption of the training pool."""
    texts = _pairs(bench.target, folder).text_features[:: SCENES // BASE.pool, 0][: BASE.pool]
    attack = partial(pgd_attack, p.method, bench, texts, p.strength)
    plain, after = bench.plain, p.method == "pgd-after"
    perturbed = torch.cat([attack(x) for x in (bench.decoded if after else bench.x).split(BATCH)])
    protected = perturbed if after else bench.decode(plain, bench.latents(plain, perturbed))

    def protect(x: Tensor) -> None:
        plain.compress(x)
        if after:
            attack(bench.decode(plain, bench.latents(plain, x)))
        else:
            plain.decompress(plain.compress(attack(x)))

    both = bench.bpp(plain) + (0 if after else bench.bpp(plain, perturbed))
    cost = bench.seconds_per_megapixel(protect)
    return bench.measure(protected) | {"bpp_both": both, "seconds_per_megapixel": cost, "training_s": 0.0}


def _pairs(target: Target, folder: Path, scenes: int | None = None) -> Pairs:
    """What every trained point sees."""
    return load_pairs(("scenes",), None, scenes or SCENES).with_features(target, folder / "cache")


def pgd_attack(method: str, bench: Bench, texts: Tensor, level: float, x: Tensor) -> Tensor:
    """Pictures ``(n, 3, H, W)``, each pulled to the caption of least evidence: Eq. 8 on the picture's row alone.

    Args:
        method: ``pgd-before``, ``pgd-through`` or ``pgd-after``.
        bench: The target and the plain codec.
        texts: Unit features of the K captions.
        level: PSNR in dB of the perturbed picture.
        x: In [0, 1].
    """
    with torch.no_grad():
        doubted = (bench.target.encode_image(x) @ texts.T).argmin(1)
    through: Callable[[Tensor], Tensor] = coded(bench.plain) if method == "pgd-through" else (lambda shown: shown)
    return pgd(x, pull_to(bench.target, texts, doubted, BASE.s, through), level, PGD_STEPS)
