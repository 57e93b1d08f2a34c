"""Objectives, choices and rivals on equal terms: one plain codec, the same pictures, steps and target for each."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from psic_core.codec import PSIC
from psic_core.config import TrainConfig, seed_everything
from psic_core.datasets.eval_sets import eval_set
from psic_core.lab import ablations
from psic_core.lab.ablations import RIVALS, VARIANTS, Point, phase_config, point, points, trained
from psic_core.lab.bavaft import BAvAFT, changed_state, load_bavaft, train_bavaft
from psic_core.lab.bench import Bench
from psic_core.lab.evaluate import no_nan
from psic_core.lab.pgd import coded, pgd, pull_to
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance, scale_triggers
from psic_core.training.files import store_tensors, whole
from psic_core.training.pairs import Pairs
from psic_core.training.phase import load_pairs

PGD_STEPS = 10


def run_points(names: Sequence[str], folder: Path, out: Path, pictures: int = 300, target: str = "lite-clip") -> None:
    """Run points (default: all) and write what they give, a line of JSON each; lines that are there are kept.

    Args:
        names: As `point` reads them; empty for all that ``out`` does not have yet.
        folder: Of the runs; a trained one is not trained again.
        out: File of JSON lines, in the order of `points`.
        pictures: How many held-out scenes to measure on.
        target: The model under attack.
    """
    chosen = [point(n) for n in names] or points()
    kept = {point(line["name"]): line for line in (read_points(out) if out.is_file() else [])}
    chosen = [p for p in chosen if names or p not in kept]
    if not chosen:
        return
    order = {known: k for k, known in enumerate(points())}
    out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        load_checkpoint(ablations.SHIPPED, plain=True), eval_set("scenes", limit=pictures), load_target(target)
    )
    for p in chosen:
        what = VARIANTS[p.method].what if p.method in VARIANTS else RIVALS[p.method]
        about = {"name": str(p), "method": p.method, "strength": p.strength, "seed": p.seed, "what": what}
        run = _psic if p.method in VARIANTS else {"shipped": _shipped, "bavaft": _bavaft}.get(p.method, _pgd)
        kept[p] = about | run(p, bench, folder) | provenance()
        lines = [json.dumps(no_nan(kept[k])) for k in sorted(kept, key=lambda k: (order.get(k, len(order)), k))]
        with whole(out) as partial:
            partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        asr = "  ".join(f"{task} {100 * e['value']:.1f}" for task, e in kept[p]["asr"].items())
        print(f"{p}  protected {kept[p]['psnr']['protected']:.2f} dB  {asr}", flush=True)


def read_points(path: Path) -> list[dict[str, Any]]:
    """What `run_points` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- each kind of point ---------------------------------------------------------------------------------


def _psic(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """PSIC, trained in stage two: one encoding."""
    return _one_stream(*trained(p, folder, bench.target.name), bench)


def _shipped(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """A shipped model, all triggers scaled by the point's strength."""
    model = load_checkpoint(ablations.SHIPPED)
    scale_triggers(model, p.strength)
    return _one_stream(model, sum(phase["seconds"] for phase in model.card["history"]), bench)


def _one_stream(model: PSIC, seconds: float, bench: Bench) -> dict[str, Any]:
    protected = bench.decode(model, bench.y_hat)
    report = bench.measure(protected, None if model.config.anchored else bench.decode(model, bench.y_hat, full=True))
    bpp = bench.bpp(model)
    cost = bench.seconds_per_megapixel(lambda x: model.decompress(model.compress(x)))
    return report | {"bpp": bpp, "bpp_both": bpp, "encodings": 1, "seconds_per_megapixel": cost, "training_s": seconds}


def _bavaft(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """BAvAFT: clean and poisoned are two encodings."""
    rival, seconds = trained_bavaft(p, folder, bench.target.name)
    with torch.no_grad():
        poisoned = torch.cat([rival.trigger(x) for x in bench.x.split(bench.batch)])
    codec = rival.codec
    protected, full = (bench.decode(codec, bench.latents(codec, x)) for x in (poisoned, bench.x))
    bpp, clean = bench.bpp(codec, poisoned), bench.bpp(codec)

    def protect(x: Tensor) -> None:
        codec.compress(x)
        codec.decompress(codec.compress(rival.trigger(x).detach()))

    return bench.measure(protected, full) | {
        "bpp": bpp, "bpp_both": bpp + clean, "encodings": 2,
        "seconds_per_megapixel": bench.seconds_per_megapixel(protect), "training_s": seconds,
    }  # fmt: skip


def trained_bavaft(p: Point, folder: Path, target: str) -> tuple[BAvAFT, float]:
    """A trained BAvAFT, and the seconds that it took; trains it where ``folder`` lacks it."""
    path, config = folder / f"{p}.safetensors", phase_config(p)
    if not path.is_file():
        seed_everything(p.seed)
        rival, attacked = BAvAFT(load_checkpoint(ablations.SHIPPED, plain=True)), load_target(target)
        row = train_bavaft(rival, _pairs(attacked, folder), config, attacked)
        about = {"config": json.dumps(asdict(config)), "target": target, "last": json.dumps(row), **provenance()}
        store_tensors(changed_state(rival), path, about)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    if TrainConfig(**json.loads(about["config"])) != config or about["target"] != target:
        raise ValueError(f"{path} was trained otherwise ({about['config']}); choose another --out")
    return load_bavaft(load_checkpoint(ablations.SHIPPED, plain=True), path), json.loads(about["last"])["seconds"]


def publish_bavaft(p: Point, folder: Path, path: Path, target: str = "lite-clip") -> None:
    """Write a trained BAvAFT's weights as float16, for notebook 08."""
    rival, _ = trained_bavaft(p, folder, target)
    with safe_open(folder / f"{p}.safetensors", "pt") as file:
        store_tensors({name: t.half() for name, t in changed_state(rival).items()}, path, file.metadata())


def _pgd(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """PGD: nothing is trained; each picture is attacked for itself, towards a caption of the training pool."""
    texts = _pairs(bench.target, folder).text_features[:: ablations.SCENES // ablations.BASE.pool, 0]
    attack = pgd_attack(p.method, bench, texts[: ablations.BASE.pool], p.strength)
    plain, after = bench.plain, p.method == "pgd-after"
    perturbed = torch.cat([attack(x) for x in (bench.decoded if after else bench.x).split(bench.batch)])
    protected = perturbed if after else bench.decode(plain, bench.latents(plain, perturbed))
    clean = bench.bpp(plain)
    bpp = clean if after else bench.bpp(plain, perturbed)

    def protect(x: Tensor) -> None:
        plain.compress(x)
        if after:
            attack(bench.decode(plain, bench.latents(plain, x)))
        else:
            plain.decompress(plain.compress(attack(x)))

    return bench.measure(protected) | {
        "bpp": bpp, "bpp_both": clean if after else bpp + clean, "encodings": 1 if after else 2,
        "seconds_per_megapixel": bench.seconds_per_megapixel(protect), "training_s": 0.0,
    }  # fmt: skip


def _pairs(target: Target, folder: Path) -> Pairs:
    """What every trained point sees."""
    return load_pairs(("scenes",), None, ablations.SCENES).with_features(target, folder / "cache")


def pgd_attack(
    method: str, bench: Bench, texts: Tensor, level: float, steps: int = PGD_STEPS
) -> Callable[[Tensor], Tensor]:
    """Pictures ``(n, 3, H, W)`` to perturbed ones, each pulled to the caption of least evidence.

    That is Eq. 8 on the picture's row alone, whose order is that of the cosines.

    Args:
        method: ``pgd-before``, ``pgd-through`` or ``pgd-after``.
        bench: The target and the plain codec.
        texts: Unit features of the K captions.
        level: PSNR in dB of the perturbed picture.
        steps: Gradient steps.
    """

    def attack(x: Tensor) -> Tensor:
        with torch.no_grad():
            doubted = (bench.target.encode_image(x) @ texts.T).argmin(1)
        through = coded(bench.plain) if method == "pgd-through" else (lambda shown: shown)
        return pgd(x, pull_to(bench.target, texts, doubted, ablations.BASE.s, through), level, steps)

    return attack
