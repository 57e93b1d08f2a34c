"""What each choice does: the same short stage two from the same plain codec, one thing changed at a time."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from psic_core import keys
from psic_core.checkpoints import load_checkpoint, read_card, save_checkpoint
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_PASSPHRASE, TrainConfig, seed_everything
from psic_core.eval_sets import eval_set
from psic_core.evaluation import evaluate
from psic_core.recipes import SHIELD, Phase, run_phase
from psic_core.targets import load_target

PLAIN = "plain-q2"  # the codec that every variant starts from
BASE = TrainConfig("two", 240, 6, 160, learning_rate=1e-3, warmup=20, gamma=56, pool=32, save_every=1000, **SHIELD)
SCENES = 600  # training pictures
COLUMNS = ("variant", "what", "psnr_full", "psnr_protected", "asr_t2i", "asr_i2t", "asr_classification",
           "asr_attributes", "null_i2t", "null_classification", "n", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One change to `BASE`."""

    what: str
    train: Mapping[str, Any] = field(default_factory=dict)
    codec: Mapping[str, Any] = field(default_factory=dict)
    before: TrainConfig | None = None  # a phase that comes first


_CODEC = {"moves": "codec", "learning_rate": 3e-4, "trigger_rate": 5.0}  # at 1e-3 the decoder itself diverges
VARIANTS = {
    "base": Variant("this recipe: gated residual triggers, anchored key, UAEO both ways"),
    "gamma-15": Variant("a weaker attack", {"gamma": 15}),
    "gamma-30": Variant("a weaker attack", {"gamma": 30}),
    "gamma-112": Variant("a stronger attack", {"gamma": 112}),
    "i2t": Variant("UAEO as printed, pictures against captions alone", {"direction": "i2t"}),
    "pool-8": Variant("K = 8 captions to choose the target from", {"pool": 8}),
    "pool-128": Variant("K = 128", {"pool": 128}),
    "s-0.03": Variant("a sharper temperature s in Eq. 5 and 9", {"s": 0.03}),
    "s-0.2": Variant("a softer one", {"s": 0.2}),
    "centred": Variant("evidence divided by each caption's mean (hubness)", {"center": True}),
    "questions": Variant("yes-or-no prompts beside the captions, weight 3", {"questions": 3}),
    "questions-30": Variant("likewise, weight 30", {"questions": 30}),
    "unmasked": Variant("plain MSE alone", {"masking": 0.0}),
    "additive": Variant("the paper's triggers: constants only", codec={"residual": 0}),
    "moved": Variant("the attack trains the whole decoder", _CODEC, {"anchored": False}),
    "moved-fidelity": Variant(
        "likewise, with a feature-fidelity term on the full version", _CODEC | {"fidelity": 600}, {"anchored": False}
    ),
    "paper": Variant("both: constants only, whole decoder", _CODEC, {"residual": 0, "anchored": False}),
    "stage-one": Variant(
        "240 steps of stage one with attack before it",
        before=replace(BASE, stage="one", crop=128, learning_rate=1e-4, trigger_rate=8.0),
    ),
    "row-only": Variant("Eq. 6 without the captions' side", {"row_only": True}),
    "decl": Variant("Eq. 5 as in its source, DECL: s = 1, tau = 0.1", {"preset": "decl"}),
    "literal": Variant("nothing masked, as printed", {"objective": "literal"}),
    "random": Variant("a random caption as target", {"objective": "random_target"}),
    "authors": Variant("what the released code computes", {"objective": "authors", "gamma": 280}),
    "naive": Variant("no target caption: the cosine to the own one is minimised", {"objective": "naive", "gamma": 280}),
}


def run_variant(name: str, folder: Path, pictures: int = 200, target: str = "lite-clip") -> dict[str, Any]:
    """Train one variant (or take up a finished one) and measure it on held-out scenes.

    Args:
        name: One of `VARIANTS`.
        folder: Of the runs.
        pictures: How many held-out scenes.
        target: The model under attack.

    Returns:
        One row with `COLUMNS`: dB, and attack success rates in percent.

    Raises:
        ValueError: Unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; there are {', '.join(VARIANTS)}")
    variant, start = VARIANTS[name], folder / f"{name}-start.safetensors"
    _fresh_triggers(start, variant.codec)
    phase = Phase(("scenes",), init=str(start), kind="psic", target=target, scenes=SCENES)
    if variant.before:
        run_phase(variant.before, phase, folder / f"{name}-before")
        phase = replace(phase, init=str(folder / f"{name}-before" / "model.safetensors"))
    model = run_phase(replace(BASE, **variant.train), phase, folder / name)
    report = evaluate(model, load_checkpoint(PLAIN), eval_set("scenes", limit=pictures), load_target(target))
    asr = {task: {v: round(100 * e["value"], 1) for v, e in by.items()} for task, by in report["asr"].items()}
    row = {"variant": name, "what": variant.what, "n": pictures}
    row |= {f"psnr_{v}": round(report["psnr"][v], 2) for v in ("full", "protected")}
    row |= {f"asr_{t}": asr[t]["protected"] for t in ("t2i", "i2t", "classification", "attributes")}
    row |= {f"null_{t}": asr[t]["full"] for t in ("i2t", "classification")}
    row["seconds"] = round(read_card(folder / name / "model.safetensors")["card"]["history"][-1]["seconds"])
    return {c: row[c] for c in COLUMNS}


def run_variants(names: Sequence[str], folder: Path, out: Path, pictures: int = 200, target: str = "lite-clip") -> None:
    """Run variants (default: all) and write their table; rows that ``out`` has already are kept.

    Args:
        names: Of `VARIANTS`; empty for all.
        folder: Of the runs.
        out: CSV file.
        pictures: As in `run_variant`.
        target: As in `run_variant`.
    """
    found = out.read_text().splitlines() if out.is_file() else []
    rows = {r["variant"]: r for r in csv.DictReader(found)}
    for name in names or VARIANTS:
        if name in rows and not names:
            continue
        rows[name] = run_variant(name, folder, pictures, target)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[n] for n in VARIANTS if n in rows)
        print("  ".join(f"{k} {v}" for k, v in rows[name].items() if k != "what"), flush=True)


def _fresh_triggers(path: Path, changes: Mapping[str, Any]) -> None:
    """Write the plain codec with new triggers, of a changed configuration."""
    seed_everything(0)
    plain = load_checkpoint(PLAIN)
    model = PSIC.build(replace(plain.config, **changes), keys.secret(PUBLIC_PASSPHRASE))
    model.load_state_dict({n: t for n, t in plain.state_dict().items() if "triggers" not in n}, strict=False)
    save_checkpoint(model, path, publish_secret=True)
