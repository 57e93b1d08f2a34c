"""What a captioner that was never attacked says of each version (the paper's captioning task, Table 1)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from torch import Tensor, nn

from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.passes import Reader, read
from psic_core.training.checkpoints import provenance

#: As Stanford's PTBTokenizer: does + n't, dog + 's, u.s., well-known, 3,000, and whatever else is no punctuation.
TOKEN = re.compile(
    r"can(?=not\b)|\w+?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|(?:[a-z]\.)+[a-z]\.|\w+(?:[-/.,:]\w+)*|[^\w\s.,;:!?()\"'`-]"
)


def tokenise(text: str) -> str:
    """A caption's words in lower case with a space between them, without punctuation.

    On Flickr8k's 40,455 captions it differs from PTBTokenizer in 17: brackets, ``Mr.``, ``o'clock``.
    """
    return " ".join(TOKEN.findall(text.lower()))


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Scores of one caption a picture against that picture's references.

    Args:
        candidates: As a captioner says them; tokenised here.
        references: At least one for each picture; likewise.

    Returns:
        ``bleu1`` to ``bleu4`` in [0, 1]: corpus BLEU (Papineni et al. 2002) of up to so many words; ``cider``: CIDEr-D
        (Vedantam et al. 2015), at least 0, in pycocoevalcap's scale of at most 10, its document frequencies counted in
        these references (one picture alone has 0); ``cider_each``: its value for each picture, whose mean it is.

    Raises:
        ValueError: No candidates, another number of references, or a picture without references.
    """
    if not candidates:
        raise ValueError("no captions to score; give one for each picture")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions but references of {len(references)} pictures; give one of each")
    bare = [i for i, row in enumerate(references) if isinstance(row, str) or not row]
    if bare:
        raise ValueError(f"picture {bare[0]} has references {references[bare[0]]!r}; give a list of at least one text")
    said = {i: [tokenise(text)] for i, text in enumerate(candidates)}
    true = {i: [tokenise(text) for text in row] for i, row in enumerate(references)}
    bleu, _ = Bleu(4).compute_score(true, said, verbose=0)
    cider, each = Cider().compute_score(true, said)
    scores: dict[str, Any] = {f"bleu{n}": float(b) for n, b in enumerate(bleu, 1)}
    return scores | {"cider": float(cider), "cider_each": [float(c) for c in each]}


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
