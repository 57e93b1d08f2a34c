"""What a captioner that was never attacked says of each version (the paper's captioning task, Table 1).

python data/measure/captions.py --checkpoint psic-q3 --dataset flickr8k --json data/results/captions-q3.json
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from psic_core.app.tables import captions_table
from psic_core.codec import PSIC
from psic_core.datasets import DataSet
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.lab.captioner import load_captioner
from psic_core.lab.evaluate import write_json
from psic_core.lab.passes import Reader, read
from psic_core.metrics import caption_scores
from psic_core.training.checkpoints import load_checkpoint, provenance

CAPTIONED = ("original", "plain", "full", "protected", "jpeg")  # jpeg: the null at the protected PSNR
SCORES = ("bleu1", "bleu2", "bleu3", "bleu4", "cider")


def caption_report(
    model: PSIC, plain: PSIC, data: EvalSet, captioner: nn.Module, cache: str | Path | None = None
) -> dict[str, Any]:
    """Caption every version of every picture and score the sentences.

    Args:
        model: PSIC, with its secret.
        plain: The plain codec of the same rate.
        data: With captions: the references.
        captioner: A network with ``name``, ``caption_ids`` and ``words``, as `captioner.LiteCaptioner` has them.
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
        "cider_loss": {v: relative_loss(each["plain"], each[v]) for v in CAPTIONED[2:]},
        "examples": {version: sentences[:8] for version, sentences in said.items()},
        "provenance": provenance(),
    }


def relative_loss(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> dict[str, Any]:
    """``1 - mean(after) / mean(before)`` with a 95 % percentile interval; the bootstrap draws pictures.

    Args:
        before: A score of each picture, at least 0.
        after: Of the same pictures.

    Returns:
        ``value`` and ``ci95``; NaN where ``before`` is 0 throughout.
    """
    drawn = torch.randint(len(before), (1000, len(before)), generator=torch.Generator().manual_seed(0))
    losses = 1 - after[drawn].mean(1) / before[drawn].mean(1)
    low, high = torch.nanquantile(losses, torch.tensor([0.025, 0.975], dtype=losses.dtype)).tolist()
    return {"value": float(1 - after.mean() / before.mean()), "ci95": [low, high]}


@dataclass(frozen=True)
class Captions:
    """Score what a captioner that was never attacked says of each version."""

    json: Path  # the report
    dataset: DataSet  # with captions
    checkpoint: str = "psic-q4"  # file or shipped name
    cache: Path | None = None  # folder that keeps what was measured: a second run takes seconds
    data_root: str | None = None  # of the data sets (PSIC_DATA_ROOT), or your captioned photos
    limit: int | None = None  # the first so many pictures
    side: int | None = None  # shorter side in pixels that photos are coded at; 0: as they are; None: the set's own way

    def run(self) -> None:
        """Caption, score, write and print."""
        model, plain = load_checkpoint(self.checkpoint), load_checkpoint(self.checkpoint, plain=True)
        data = eval_set(self.dataset, self.data_root, self.limit, self.side)
        report = caption_report(model, plain, data, load_captioner(), self.cache)
        write_json(report | {"checkpoint": self.checkpoint, "side": self.side}, self.json)
        print(captions_table({model.config.quality: report}))


if __name__ == "__main__":
    tyro.cli(Captions).run()
