"""Objectives, triggers and rivals on equal terms: one plain codec, the same pictures, steps and target for each."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psic_core.config import seed_everything
from psic_core.datasets.eval_sets import eval_set
from psic_core.lab.ablations import BASE, SCENES, SHIPPED, Point, phase_config, point, points, trained
from psic_core.lab.bavaft import BAvAFT, changed_state, load_bavaft, train_bavaft
from psic_core.lab.bench import TASKS, Bench
from psic_core.lab.evaluate import no_nan
from psic_core.lab.pgd import coded, pgd, pull_to
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance
from psic_core.training.files import read_tensors, store_tensors, whole
from psic_core.training.pairs import Pairs
from psic_core.training.phase import load_pairs

PGD_STEPS = 10
TOLERANCE = 0.25  # dB beyond the end of a curve that its last point still stands for

Points = Sequence[Mapping[str, Any]]


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
        poisoned = torch.cat([rival.trigger(x) for x in bench.x.split(bench.batch)])
    codec = rival.codec
    protected, full = (bench.decode(codec, bench.latents(codec, x)) for x in (poisoned, bench.x))

    def protect(x: Tensor) -> None:
        codec.compress(x)
        codec.decompress(codec.compress(rival.trigger(x).detach()))

    cost, both = bench.seconds_per_megapixel(protect), bench.bpp(codec, poisoned) + bench.bpp(codec)
    return bench.measure(protected, full) | {"bpp_both": both, "seconds_per_megapixel": cost, "training_s": seconds}


def trained_bavaft(p: Point, folder: Path, target: str) -> tuple[BAvAFT, float]:
    """A trained BAvAFT, and the seconds that it took; trains it where ``folder`` lacks it.

    Raises:
        ValueError: The folder's was trained otherwise.
    """
    path, config = folder / f"{p}.safetensors", phase_config(p)
    if not path.is_file():
        seed_everything(p.seed)
        rival, attacked = BAvAFT(load_checkpoint(SHIPPED, plain=True)), load_target(target)
        row = train_bavaft(rival, _pairs(attacked, folder), config, attacked)
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
    perturbed = torch.cat([attack(x) for x in (bench.decoded if after else bench.x).split(bench.batch)])
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


def _pairs(target: Target, folder: Path) -> Pairs:
    """What every trained point sees."""
    return load_pairs(("scenes",), None, SCENES).with_features(target, folder / "cache")


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
