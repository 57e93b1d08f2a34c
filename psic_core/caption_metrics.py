"""BLEU, CIDEr and SPICE of captions by pycocoevalcap, on words that our own function cuts, without Java."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer import ptbtokenizer

STANFORD = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")  # SPICE's parser, half a gigabyte
QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "--", "—": "--"})
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
SPLIT = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"}
REMOVED = {*ptbtokenizer.PUNCTUATIONS, '"'}  # its brackets' names are in capitals: ours stay, as Stanford's do
CLITIC = r"'(?:s|m|d|re|ve|ll)\b"
TOKEN = re.compile(
    rf"""
      https?://\S+ | (?:\w+\.)+(?:com|org|net|edu)\b      # addresses
    | (?:[A-Za-z]\.){{2,}} | \b[A-Z]\.                    # U.S., e.g., Miami U.
    | \b(?:Mr|Mrs|Ms|Dr|Jr|Sr|St|Prof|vs|etc)\.           # abbreviations
    | \b[Nn]o\.(?=\s*\d) | 'n'(?!\w) | '\d0s\b            # no. 5, rock 'n' roll, the '90s
    | [A-Z]+(?:&[A-Z]+)+ | @\w+                           # AT&T, @home
    | \d+(?:[.,:/]\d+)+                                   # 3,000, 5:30, 1/2
    | \w+?(?=(?i:n't)\b) | (?i:n't)\b | (?i:{CLITIC})     # does + n't, dog + 's
    | [^\W\d_]+'(?!(?i:s|m|d|re|ve|ll)\b)[^\W\d_]{{2,}}   # o'clock
    | \w+(?:[-/.]\w+)*                                    # well-known, and/or
    | \.{{2,}} | -+ | [?!]+ | \S
    """,
    re.VERBOSE,
)


def tokenise(text: str) -> str:
    """A caption's words in lower case with a space between them, without punctuation.

    The Penn Treebank rules that captions need, as Stanford's ``PTBTokenizer -lowerCase`` with pycocoevalcap's list of
    removed punctuation, which needs Java: both agree on all captions of Flickr8k. Markup is not known here.
    """
    words = (found.group() for found in TOKEN.finditer(text.translate(QUOTES)))
    lower = (BRACKETS.get(word, word.lower()) for word in words)
    kept = (SPLIT.get(word, word) for word in lower if word not in REMOVED and word.strip("."))
    return " ".join(kept)


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Scores of one caption a picture against that picture's references.

    Args:
        candidates: As a captioner says them; tokenised here.
        references: At least one for each picture; likewise.

    Returns:
        ``bleu1`` to ``bleu4`` in [0, 1]: corpus BLEU (Papineni et al. 2002) of up to so many words; ``cider``: CIDEr-D
        (Vedantam et al. 2015), at least 0, in pycocoevalcap's scale of at most 10, its document frequencies counted in
        these references (one picture alone has 0); ``cider_each``: its value for each picture, whose mean it is;
        ``spice`` and ``spice_note`` as `spice`.

    Raises:
        ValueError: No candidates, another number of references, or a picture without references.
    """
    said, true = _prepared(candidates, references)
    bleu, _ = Bleu(4).compute_score(true, said, verbose=0)
    cider, each = Cider().compute_score(true, said)
    value, note = spice(candidates, references)
    scores: dict[str, Any] = {f"bleu{n}": float(b) for n, b in enumerate(bleu, 1)}
    return scores | {
        "cider": float(cider),
        "cider_each": [float(c) for c in each],
        "spice": value,
        "spice_note": note,
    }


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float | None, str]:
    """SPICE (Anderson et al. 2016) in [0, 1], or None where it cannot run; nothing is downloaded.

    Returns:
        The score, and a sentence that says how it was got or why not.

    Raises:
        ValueError: As `caption_scores`.
    """
    said, true = _prepared(candidates, references)
    if not shutil.which("java"):
        return None, "SPICE needs Java, and there is none: install a Java runtime"
    folder = Path(ptbtokenizer.__file__).parents[1] / "spice"
    missing = [name for name in STANFORD if not (folder / "lib" / name).is_file()]
    if missing:
        how = "`python -m pycocoevalcap.spice.get_stanford_models` fetches it, half a gigabyte"
        return None, f"SPICE needs {missing[0]}, which is not there: {how}"
    from pycocoevalcap.spice.spice import Spice

    try:
        value, _ = Spice().compute_score(true, said)
    except (OSError, subprocess.CalledProcessError) as error:
        return None, f"SPICE did not run here (it is known to run on Java 8): {error}"
    return float(value), "SPICE 1.0 by pycocoevalcap"


Sentences = dict[int, list[str]]  # by picture, as pycocoevalcap takes them


def _prepared(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Sentences, Sentences]:
    if not candidates:
        raise ValueError("no captions to score; give one for each picture")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions but references of {len(references)} pictures; give one of each")
    bare = [i for i, row in enumerate(references) if isinstance(row, str) or not row]
    if bare:
        raise ValueError(f"picture {bare[0]} has references {references[bare[0]]!r}; give a list of at least one text")
    said = {i: [tokenise(text)] for i, text in enumerate(candidates)}
    return said, {i: [tokenise(text) for text in row] for i, row in enumerate(references)}
