"""Scores of captions (the paper's captioning task, Table 1); ``data/results/captions.py`` measures with them."""

import re
from collections.abc import Sequence
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

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
