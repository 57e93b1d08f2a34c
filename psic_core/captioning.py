"""What a captioner that was never attacked says of each version (the paper's captioning task, Table 1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psic_core.caption_metrics import caption_scores
from psic_core.captioner import Captioner
from psic_core.checkpoints import provenance
from psic_core.codec import PSIC
from psic_core.eval_sets import EvalSet
from psic_core.reading import Reader, read

CAPTIONED = ("original", "backbone", "full", "protected", "jpeg")  # jpeg: the null at the protected PSNR
SCORES = ("bleu1", "bleu2", "bleu3", "bleu4", "cider")


def caption_report(
    model: PSIC, plain: PSIC, data: EvalSet, captioner: Captioner, cache: str | Path | None = None
) -> dict[str, Any]:
    """Caption every version of every picture and score the sentences.

    Args:
        model: PSIC, with its secret.
        plain: The plain codec of the same rate.
        data: With captions: the references.
        captioner: From `load_captioner`.
        cache: Folder that keeps finished passes; ``None`` computes anew.

    Returns:
        ``scores[version]`` with `SCORES` (CIDEr as usual around 0 to 1 here, BLEU in [0, 1]), ``cider_loss[version]``:
        the share of the plain codec's CIDEr that is lost, with a 95 % interval over pictures;
        ``examples``: the first sentences; JSON-ready.

    Raises:
        ValueError: The data have no captions.
    """
    if not data.captions:
        raise ValueError(f"{data.name!r} has no captions to compare with; use flickr8k, scenes or captioned")
    folder = Path(cache) if cache else None
    reader = Reader(captioner.name, captioner, captioner.caption_ids)
    (found,) = read(model, plain, data, [reader], folder, CAPTIONED)
    said = {version: captioner.words(found.seen[version]) for version in CAPTIONED}
    scores = {version: caption_scores(sentences, list(data.captions)) for version, sentences in said.items()}
    each = {version: torch.tensor(s["cider_each"], dtype=torch.float64) for version, s in scores.items()}
    return {
        "dataset": data.name,
        "captioner": captioner.name,
        "n": data.size,
        "bpp": float(found.bpp.mean()),
        "scores": {version: {name: s[name] for name in SCORES} for version, s in scores.items()},
        "cider_loss": {v: relative_loss(each["backbone"], each[v]) for v in CAPTIONED[2:]},
        "same_as_backbone": {
            v: sum(a == b for a, b in zip(said["backbone"], said[v], strict=True)) / data.size for v in CAPTIONED[2:]
        },
        "examples": {version: sentences[:8] for version, sentences in said.items()},
        "provenance": provenance(),
    }


def relative_loss(
    before: Float[Tensor, " n"], after: Float[Tensor, " n"], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """``1 - mean(after) / mean(before)`` with a 95 % percentile interval; the bootstrap draws pictures.

    Args:
        before: A score of each picture, at least 0.
        after: Of the same pictures.
        resamples: Of the bootstrap.
        seed: Likewise.

    Returns:
        ``value`` and ``ci95``; NaN where ``before`` is 0 throughout.
    """
    drawn = torch.randint(len(before), (resamples, len(before)), generator=torch.Generator().manual_seed(seed))
    losses = 1 - after[drawn].mean(1) / before[drawn].mean(1)
    low, high = torch.nanquantile(losses, torch.tensor([0.025, 0.975], dtype=losses.dtype)).tolist()
    return {"value": float(1 - after.mean() / before.mean()), "ci95": [low, high]}


def table(report: Mapping[str, Any]) -> str:
    """A report as plain text."""
    lines = [f"{report['dataset']}: {report['n']} pictures, captioner {report['captioner']}, {report['bpp']:.3f} bpp"]
    for version, scores in report["scores"].items():
        shown = "  ".join(f"{name} {100 * value:5.1f}" for name, value in scores.items())
        loss = report["cider_loss"].get(version)
        told = "" if loss is None else f"  CIDEr lost {100 * loss['value']:5.1f} %"
        lines.append(f"{version:10} {shown}{told}")
    return "\n".join(lines)
