"""Caption scores: the words, BLEU as nltk has it, CIDEr-D straight from its formula, and laws that both must keep."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu

from psic_core.lab.captions import caption_scores, tokenise

# As Stanford's tokenizer cuts them, punctuation removed; the first ones are Flickr8k's own.
PTB = {
    "A child in a pink dress is climbing up a set of stairs in an entry way .": (
        "a child in a pink dress is climbing up a set of stairs in an entry way"
    ),
    "We cannot see the girl with the white T-shirt .": "we can not see the girl with the white t-shirt",
    "Two dogs are playing ; one is catching a Frisbee .": "two dogs are playing one is catching a frisbee",
    'a shirt saying " -ependent " faces the camera': "a shirt saying ependent faces the camera",
    "a little tikes' playground set .": "a little tikes playground set",
    "people in Washington D.C.": "people in washington d.c.",
    "He doesn't know it's a dog's": "he does n't know it 's a dog 's",
    "I'm sure they're here, we've won; she'll go": "i 'm sure they 're here we 've won she 'll go",
    "3,000 people at 5:30 with 1/2 pint": "3,000 people at 5:30 with 1/2 pint",
    "100% sure #5": "100 % sure # 5",
    "naïve café 北京": "naïve café 北京",
    "": "",
    " . ": "",
}

REFERENCES = [
    ("a dog runs on the green grass", "a brown dog is running", "the dog runs across a field"),
    ("two children play with a ball", "children playing in a park", "two kids and a red ball"),
    ("a man rides a bike down a hill", "a cyclist on a mountain trail", "the man is on a bike"),
    ("a woman in a red dress stands on the street", "a lady wearing red", "a woman is standing outside"),
]
CANDIDATES = ["a dog runs on the grass", "two children play in a park", "a man on a trail", "a dog in a red dress"]


# --- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", PTB)
def test_captions_are_cut_as_stanfords_tokenizer_cuts_them(text: str):
    assert tokenise(text) == PTB[text]


# --- BLEU -------------------------------------------------------------------------------------------


def corpora() -> list[tuple[list[str], list[tuple[str, ...]]]]:
    """The sentences above, and random ones of few words, so that much agrees."""
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choice(("a", "dog", "red", "runs", "on")) for _ in range(rng.randint(4, 9)))

    drawn = [(sentence(), tuple(sentence() for _ in range(rng.randint(1, 5)))) for _ in range(30)]
    return [(CANDIDATES, REFERENCES), ([c for c, _ in drawn], [r for _, r in drawn])]


@pytest.mark.parametrize(("candidates", "references"), corpora())
def test_bleu_is_nltks(candidates: list[str], references: list[tuple[str, ...]]):
    scores = caption_scores(candidates, references)
    lists = [[r.split() for r in row] for row in references]
    for n in range(1, 5):
        expected = corpus_bleu(lists, [c.split() for c in candidates], [1 / n] * n)
        assert scores[f"bleu{n}"] == pytest.approx(expected, abs=1e-6)


def test_bleu_by_hand():
    """Six words, five of them in a reference (``dog`` but once), references of five: no brevity penalty."""
    scores = caption_scores(["a dog dog runs on grass"], [("a dog runs on grass",)])
    assert scores["bleu1"] == pytest.approx(5 / 6)
    assert scores["bleu2"] == pytest.approx(math.sqrt(5 / 6 * 4 / 5), abs=1e-6)


# --- CIDEr ------------------------------------------------------------------------------------------


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]], sigma: float = 6.0) -> list[float]:
    """CIDEr-D from its formula (Vedantam et al. 2015, Eq. 2 and 4), counts unnormalised as in its published code."""
    values = np.zeros(len(candidates))
    for n in range(1, 5):

        def grams(text: str, n: int = n) -> Counter[str]:
            words = text.split()
            return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))

        index = {g: i for i, g in enumerate({g for t in [*candidates, *sum(references, ())] for g in grams(t)})}
        seen = np.zeros(len(index))
        for row in references:
            seen[[index[g] for g in set().union(*(grams(t) for t in row))]] += 1
        idf = np.log(len(references)) - np.log(np.maximum(1, seen))

        def vector(text: str, index: dict[str, int] = index, idf: np.ndarray = idf) -> np.ndarray:
            counts = np.zeros(len(index))
            for gram, count in grams(text).items():
                counts[index[gram]] = count
            return counts * idf

        for i, (said, row) in enumerate(zip(candidates, references, strict=True)):
            g = vector(said)
            for text in row:
                s = vector(text)
                norm = np.linalg.norm(g) * np.linalg.norm(s)
                penalty = math.exp(-((len(said.split()) - len(text.split())) ** 2) / (2 * sigma**2))
                values[i] += 10 / 4 / len(row) * penalty * (np.minimum(g, s) @ s / norm if norm else 0)
    return values.tolist()


@pytest.mark.parametrize(("candidates", "references"), corpora())
def test_cider_is_its_formula_picture_by_picture(candidates: list[str], references: list[tuple[str, ...]]):
    scores = caption_scores(candidates, references)
    assert scores["cider_each"] == pytest.approx(cider_d(candidates, references))
    assert scores["cider"] == pytest.approx(np.mean(scores["cider_each"]))
    assert scores["cider"] > 0


# --- laws -------------------------------------------------------------------------------------------


def test_a_caption_that_is_every_reference_is_perfect():
    said = [row[0] for row in REFERENCES]
    scores = caption_scores(said, [(text, text) for text in said])
    assert [scores[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([1] * 4)
    assert scores["cider"] == pytest.approx(10)


def test_the_order_of_pictures_does_not_matter():
    scores = caption_scores(CANDIDATES, REFERENCES)
    turned = caption_scores(CANDIDATES[::-1], REFERENCES[::-1])
    assert turned["cider_each"][::-1] == pytest.approx(scores["cider_each"])
    assert [turned[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([scores[f"bleu{n}"] for n in range(1, 5)])


def test_the_order_of_references_case_and_full_stops_do_not_matter():
    scores = caption_scores(CANDIDATES, REFERENCES)
    other = caption_scores([f"{c.upper()} ." for c in CANDIDATES], [row[::-1] for row in REFERENCES])
    assert other["cider_each"] == pytest.approx(scores["cider_each"])
    assert other["bleu4"] == pytest.approx(scores["bleu4"])


def test_other_pictures_captions_score_lower():
    scores, wrong = (caption_scores(c, REFERENCES) for c in (CANDIDATES, CANDIDATES[1:] + CANDIDATES[:1]))
    assert wrong["cider"] < scores["cider"]
    assert wrong["bleu1"] < scores["bleu1"]
    assert all(a >= b for a, b in pairwise(scores[f"bleu{n}"] for n in range(1, 5)))


def test_a_captioner_that_says_nothing_scores_nothing():
    scores = caption_scores([""] * 4, REFERENCES)
    assert scores["cider_each"] == [0] * 4
    assert scores["bleu1"] == pytest.approx(0, abs=1e-6)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    caption_scores(CANDIDATES, REFERENCES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("candidates", "references", "says"),
    [
        ([], [], "no captions"),
        (["a"], [("a",), ("b",)], "1 captions but references of 2 pictures"),
        (["a", "b"], [("a",), ()], "picture 1 has references ()"),
        (["a", "b"], ["a dog", ("b",)], "picture 0 has references 'a dog'"),
    ],
)
def test_what_cannot_be_scored_is_refused(candidates: list, references: list, says: str):
    with pytest.raises(ValueError, match=says.replace("(", r"\(").replace(")", r"\)")):
        caption_scores(candidates, references)
