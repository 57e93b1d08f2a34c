"""Objectives, triggers and rivals on equal terms: one plain codec, the same pictures, steps and target for each.

    python data/measure/ablate.py                   every point of `METHODS` that the file lacks: hours
    python data/measure/ablate.py uaeo bavaft#1     some: METHOD[#SEED]; --list names the methods

Each point is a short training from one codec (`psic_core.lab.comparison` says of what) and becomes a line of JSON.
Triggers are held to one budget, so that objectives are compared at equal PSNR. A point that was trained is not trained
again.
"""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from torch import Tensor
from tyro.conf import Positional, arg

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_PASSPHRASE, RATES, Phase, TrainConfig, seed_everything
from psic_core.datasets.eval_sets import eval_set
from psic_core.lab.bavaft import BAvAFT, train_bavaft
from psic_core.lab.comparison import BUDGET, METHODS, SHIPPED, read_points
from psic_core.lab.evaluate import no_nan
from psic_core.lab.limits import BATCH, Bench
from psic_core.lab.pgd import coded, pgd, pull_to
from psic_core.lab.tasks import TASKS, task_results
from psic_core.metrics import attack_success_rate, bits_per_pixel, psnr
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance, read_card, save_checkpoint
from psic_core.training.files import read_tensors, store_tensors, whole
from psic_core.training.pairs import Pairs
from psic_core.training.phase import SHIELD, load_pairs, run_phase, with_triggers

BASE = TrainConfig("two", 160, 6, 160, learning_rate=1e-3, warmup=20, lmbda=RATES[3], pool=32, save_every=1000,
                   first_budget=4 * BUDGET, **SHIELD)  # fmt: skip
SCENES = 600  # training pictures
PGD_STEPS = 10
FILES = 100  # pictures whose real files are weighed
TIMED = 5  # pictures that are timed


class Point(NamedTuple):
    """One run: ``METHOD`` or ``METHOD#SEED``."""

    method: str
    seed: int = 0

    def __str__(self) -> str:
        return self.method + (f"#{self.seed}" if self.seed else "")


def point(name: str) -> Point:
    """Read a point's name.

    Raises:
        ValueError: No such method, or not of the form.
    """
    match = re.fullmatch(r"([\w.-]+)(?:#(\d+))?", name)
    if not match or match[1] not in METHODS:
        raise ValueError(f"unknown point {name!r}; write METHOD[#SEED], METHOD one of {', '.join(METHODS)}")
    return Point(match[1], int(match[2] or 0))


def points() -> list[Point]:
    """All points, seed by seed: a run that is stopped has compared all methods by some seeds."""
    seeds = range(max(m.seeds for m in METHODS.values()))
    return [Point(n, k) for k in seeds for n, m in METHODS.items() if k < m.seeds]


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
        measure = {"bavaft": _bavaft, "pgd": _pgd}.get(p.method.partition("-")[0], _psic)
        about = {"name": str(p), "method": p.method, "seed": p.seed}
        kept[p] = about | measure(p, bench, folder) | provenance()
        lines = [json.dumps(no_nan(kept[k])) for k in sorted(kept, key=lambda k: (order.get(k, len(order)), k))]
        with whole(out) as partial_file:
            partial_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        asr = "  ".join(f"{task} {100 * e['value']:.1f}" for task, e in kept[p]["asr"].items())
        print(f"{p}  protected {kept[p]['psnr']['protected']:.2f} dB  {asr}", flush=True)


# --- what each point gives ---------------------------------------------------------------------------


def measured(bench: Bench, protected: Tensor, full: Tensor | None = None) -> dict[str, Any]:
    """Fidelity and attack success of one method.

    Args:
        bench: The pictures.
        protected: At 8 bits.
        full: Likewise; ``None``: the plain codec's own, so that the null is 0.

    Returns:
        ``n``; ``psnr`` of plain, full and protected in dB (mean over pictures, against the originals);
        ``asr[task]`` of the protected version and ``null[task]`` of the full one, as `metrics.Estimate`.
        JSON-ready.
    """
    shown = {"plain": bench.decoded, "full": bench.decoded if full is None else full, "protected": protected}
    seen = {"plain": bench.read, "full": bench.read, "protected": bench.target.encode_images(protected).cpu()}
    if full is not None:
        seen["full"] = bench.target.encode_images(full).cpu()
    report: dict[str, Any] = {"n": bench.data.size, "asr": {}, "null": {}}
    report["psnr"] = {v: sum(map(psnr, pictures, bench.x)) / bench.data.size for v, pictures in shown.items()}
    for task, (by, groups) in task_results(seen, bench.data, bench.texts).items():
        if task in TASKS:
            rate = partial(attack_success_rate, by["plain"], groups=groups)
            report["asr"][task] = rate(by["protected"])._asdict()
            report["null"][task] = rate(by["full"])._asdict()
    return report


def bpp(bench: Bench, model: PSIC, pictures: Tensor | None = None) -> float:
    """Bits per pixel of real files, mean over the first `FILES` pictures."""
    shown = (bench.x if pictures is None else pictures)[:FILES]
    return sum(bits_per_pixel(model.compress(x), *x.shape[-2:]) for x in shown) / len(shown)


def seconds_per_megapixel(bench: Bench, protect: Callable[[Tensor], object]) -> float:
    """Processor time of ``protect`` on one picture after the other, for each megapixel.

    Args:
        bench: The pictures.
        protect: Takes one picture ``(1, 3, H, W)`` through everything that its protection costs.
    """
    shown = bench.x[: TIMED + 1].split(1)
    protect(shown[0])  # tables, threads and caches
    started = time.process_time()
    for x in shown[1:]:
        protect(x)
    pixels = sum(x.shape[-1] * x.shape[-2] for x in shown[1:])
    return (time.process_time() - started) / pixels * 1e6


# --- each kind of point ---------------------------------------------------------------------------------


def phase_config(p: Point) -> TrainConfig:
    """How a trained point learns."""
    return replace(BASE, **METHODS[p.method].train, seed=p.seed)


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
        fresh = with_triggers(plain, replace(plain.config, **{"budget": BUDGET, **METHODS[p.method].codec}))
        fresh.kind = "psic"
        save_checkpoint(fresh, start, publish_secret=True)
        run_phase(config, Phase(("scenes",), init=str(start), kind="psic", target=target, scenes=SCENES), path.parent)
    last = read_card(path)["card"]["history"][-1]
    if last["config"] != asdict(config) or last["target"] != target:
        raise ValueError(f"{path} was trained otherwise ({last['config']}, {last['target']}); choose another --out")
    return load_checkpoint(path), last["seconds"]


def _psic(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """PSIC, trained in stage two, or shipped and held to this budget: one encoding."""
    if p.method == "shipped":
        model = load_checkpoint(SHIPPED)
        model.config = replace(model.config, budget=BUDGET)
        seconds = sum(phase["seconds"] for phase in model.card["history"])
    else:
        model, seconds = trained(p, folder, bench.target.name)
    protected = bench.decode(model, bench.y_hat)
    report = measured(bench, protected, None if model.config.anchored else bench.decode(model, bench.y_hat, full=True))
    cost = seconds_per_megapixel(bench, lambda x: model.decompress(model.compress(x)))
    return report | {"bpp_both": bpp(bench, model), "seconds_per_megapixel": cost, "training_s": seconds}


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

    cost, both = seconds_per_megapixel(bench, protect), bpp(bench, codec, poisoned) + bpp(bench, codec)
    return measured(bench, protected, full) | {"bpp_both": both, "seconds_per_megapixel": cost, "training_s": seconds}


def trained_bavaft(p: Point, folder: Path, target: str) -> tuple[BAvAFT, float]:
    """A trained BAvAFT, and the seconds that it took; trains it where ``folder`` lacks it.

    Raises:
        ValueError: The folder's was trained otherwise.
    """
    path, config = folder / f"{p}.safetensors", phase_config(p)
    rival = BAvAFT(load_checkpoint(SHIPPED, plain=True))
    if not path.is_file():
        seed_everything(p.seed)
        attacked = load_target(target)
        row = train_bavaft(rival, _pairs(attacked, folder), config, attacked)
        about = {"config": json.dumps(asdict(config)), "target": target, "last": json.dumps(row), **provenance()}
        kept = ("trigger.", "codec.backbone.g_a.", "codec.backbone.h_a.")  # what it has changed
        store_tensors({n: t.half() for n, t in rival.state_dict().items() if n.startswith(kept)}, path, about)
    state, about = read_tensors(path)
    if json.loads(about["config"]) != asdict(config) or about["target"] != target:
        raise ValueError(f"{path} was trained otherwise ({about['config']}); choose another --out")
    rival.load_state_dict({name: t.float() for name, t in state.items()}, strict=False)
    return rival.eval(), json.loads(about["last"])["seconds"]


def _pgd(p: Point, bench: Bench, folder: Path) -> dict[str, Any]:
    """PGD: nothing is trained; each picture is attacked for itself, towards a caption of the training pool."""
    texts = _pairs(bench.target, folder).text_features[:: SCENES // BASE.pool, 0][: BASE.pool]
    attack = partial(pgd_attack, p.method, bench, texts, METHODS[p.method].level)
    plain, after = bench.plain, p.method == "pgd-after"
    perturbed = torch.cat([attack(x) for x in (bench.decoded if after else bench.x).split(BATCH)])
    protected = perturbed if after else bench.decode(plain, bench.latents(plain, perturbed))

    def protect(x: Tensor) -> None:
        plain.compress(x)
        if after:
            attack(bench.decode(plain, bench.latents(plain, x)))
        else:
            plain.decompress(plain.compress(attack(x)))

    both = bpp(bench, plain) + (0 if after else bpp(bench, plain, perturbed))
    cost = seconds_per_megapixel(bench, protect)
    return measured(bench, protected) | {"bpp_both": both, "seconds_per_megapixel": cost, "training_s": 0.0}


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


@dataclass(frozen=True)
class Ablate:
    """Compare objectives, choices and rivals on equal terms: short trainings from one codec."""

    points: Annotated[Positional[tuple[str, ...]], arg(metavar="METHOD[#SEED]")] = ()
    """Those to run; none named: all that the file does not have yet."""
    list: bool = False  # say what there is, and do nothing
    out: Path = Path("runs/ablations")  # folder of the runs
    json: Path = Path("data/results/points.jsonl")  # what they give, a line each
    pictures: int = 300  # held-out scenes to measure on
    target: str = "lite-clip"  # the model under attack

    def run(self) -> None:
        """Run the points, or list the methods."""
        if not self.list:
            run_points(self.points, self.out, self.json, self.pictures, self.target)
        for name, method in METHODS.items() if self.list else ():
            print(f"{name:12} {method.what}; seeds {method.seeds}")


if __name__ == "__main__":
    tyro.cli(Ablate).run()
