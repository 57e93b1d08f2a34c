"""Captions: their words and scores; the report of what is said of each version, and what is lost."""

import json
from pathlib import Path

import captions as module
import pytest
import torch
from captions import CAPTIONED, Captions, caption_report
from models import awaken
from test_trainer import tiny
from torch import Tensor, nn

from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.datasets.eval_sets import EvalSet
from psic_core.metrics import caption_scores, tokenise
from psic_core.training.checkpoints import save_checkpoint

TINY = CodecConfig(n=8, m=12, dim=16, hidden=8)
WORDS = ("a", "dog", "cat", "runs", "on", "grass")


class Brightness(nn.Module):
    """Two sentences: which one hangs on a bit of the picture that any change turns."""

    name = "brightness"

    def caption_ids(self, pictures: Tensor) -> Tensor:
        odd = (pictures * 255).round().sum((1, 2, 3)).long() % 2
        return torch.stack([torch.tensor([1, 2 + int(o), 4, 5, 6, 0]) for o in odd])

    def words(self, ids: Tensor) -> list[str]:
        return [" ".join(WORDS[i - 1] for i in row if i) for row in ids.tolist()]


@pytest.fixture(scope="module")
def model() -> PSIC:
    return awaken(tiny(config=TINY)).eval()


@pytest.fixture(scope="module")
def plain() -> PSIC:
    return tiny("plain", config=TINY).eval()


def pictures(n: int = 6) -> EvalSet:
    rng = torch.Generator().manual_seed(1)
    drawn = [(torch.rand(3, 64, 64, generator=rng) * 255).round() / 255 for _ in range(n)]
    captions = [(f"a {('dog', 'cat')[i % 2]} runs on grass", f"picture {i} of something") for i in range(n)]
    return EvalSet("drawn", n, drawn.__getitem__, captions=captions)


def test_the_report_scores_every_version(model: PSIC, plain: PSIC, tmp_path: Path):
    report = caption_report(model, plain, pictures(), Brightness(), tmp_path)
    assert (report["captioner"], report["n"]) == ("brightness", 6)
    assert set(report["scores"]) == set(CAPTIONED)
    assert report["scores"]["full"] == report["scores"]["plain"]  # anchored: the same pictures
    assert report["cider_loss"]["full"] == {"value": 0, "ci95": [0, 0]}
    assert len({s for sentences in report["examples"].values() for s in sentences}) == 2
    assert json.loads(json.dumps(report)) == report
    again = caption_report(model, plain, pictures(), Brightness(), tmp_path)
    assert again["scores"] == report["scores"]


def test_pictures_without_captions_are_refused(model: PSIC, plain: PSIC):
    bare = EvalSet("photos", 1, lambda i: torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match="'photos' has no captions"):
        caption_report(model, plain, bare, Brightness())


def test_the_command_writes_and_shows_the_report(
    model: PSIC, plain: PSIC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for name, m in (("psic", model), ("plain", plain)):
        save_checkpoint(m, tmp_path / f"{name}-q2.safetensors", publish_secret=True)
    monkeypatch.setattr(module, "load_captioner", lambda: Brightness())
    out = tmp_path / "captions.json"
    Captions(out, "scenes", str(tmp_path / "psic-q2.safetensors"), limit=3).run()
    report = json.loads(out.read_text())
    assert report["n"] == 3
    assert report["scores"]["original"]["cider"] >= 0
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines()[2:]] == list(CAPTIONED)


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


# --- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", PTB)
def test_captions_are_cut_as_stanfords_tokenizer_cuts_them(text: str):
    assert tokenise(text) == PTB[text]


# --- scores -------------------------------------------------------------------------------------------


def test_a_caption_that_is_every_reference_is_perfect():
    said = [row[0] for row in REFERENCES]
    scores = caption_scores(said, [(text, text) for text in said])
    assert [scores[f"bleu{n}"] for n in range(1, 5)] == pytest.approx([1] * 4)
    assert scores["cider"] == pytest.approx(10)


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
