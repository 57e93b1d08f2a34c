"""The captioner: pictures of any size in, sentences out; beam search finds what is likely; files load."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor

from psic_core.config import data_dir
from psic_core.lab.captioner import (
    LENGTH,
    PAD,
    SPECIAL,
    START,
    STOP,
    CaptionDecoder,
    LiteCaptioner,
    load_captioner,
    search,
)

WORDS = (*SPECIAL, "a", "dog", "cat", "runs", "red", "grass")


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def random_captioner() -> LiteCaptioner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LiteCaptioner(CaptionDecoder(len(WORDS)), WORDS)


# --- the decoder and the search ---------------------------------------------------------------------


def test_a_word_depends_on_those_before_it_alone():
    decoder, ids = CaptionDecoder(10).eval(), torch.randint(4, 10, (2, 8))
    memory = decoder.memory(noise(2, 25, 1280))
    whole = decoder(memory, ids)
    other = ids.clone()
    other[:, 5:] = 4
    assert torch.allclose(decoder(memory, other)[:, :5], whole[:, :5], atol=1e-5)
    assert torch.allclose(decoder(memory, ids, last=True)[:, 0], whole[:, -1], atol=1e-5)
    assert not torch.allclose(decoder(decoder.memory(1 - noise(2, 25, 1280)), ids), whole, atol=1e-3)


class Table(CaptionDecoder):
    """Stands in for a decoder: the chance of the next word by the last one."""

    def __init__(self, chances: dict[int, dict[int, float]]) -> None:
        super().__init__(8)
        self.table = torch.full((8, 8), 1e-9)
        for last, row in chances.items():
            for word, chance in row.items():
                self.table[last, word] = chance

    def memory(self, maps: Tensor) -> Tensor:
        return maps

    def forward(self, memory: Tensor, ids: Tensor, last: bool = False) -> Tensor:
        logits = self.table.log()[ids]
        return logits[:, -1:] if last else logits


A, B, C, D = 4, 5, 6, 7
TREE = Table({START: {A: 0.6, B: 0.4}, A: {C: 0.51, D: 0.49}, B: {D: 1.0}, C: {STOP: 1.0}, D: {STOP: 1.0}})


@pytest.mark.parametrize(("beams", "expected"), [(1, [A, C]), (2, [B, D]), (3, [B, D])])
def test_more_beams_find_the_likelier_sentence(beams: int, expected: list[int]):
    """Greedily a (0.6), then c (0.31 in all); b d has 0.4."""
    found = search(TREE, noise(2, 25, 1280), beams)
    assert found.shape == (2, LENGTH)
    assert found.tolist() == [expected + [PAD] * (LENGTH - 2)] * 2


# --- lite2-captioner --------------------------------------------------------------------------------


def write(path: Path, change: dict, metadata: dict | None) -> Path:
    tensors = {key: value.half() for key, value in CaptionDecoder(len(WORDS)).state_dict().items()}
    tensors = {key: value for key, value in (tensors | change).items() if value is not None}
    save_file(tensors, path, metadata)
    return path


def test_a_captioner_is_loaded_from_a_file(tmp_path: Path):
    path = write(tmp_path / "mine.safetensors", {}, {"vocabulary": json.dumps(WORDS)})
    found = load_captioner(path)
    assert (found.name, found.vocabulary) == ("lite2-captioner", WORDS)
    state = found.decoder.state_dict()
    assert all(torch.equal(state[key], value.float()) for key, value in load_file(path).items())
    assert found.decoder.embed.weight.dtype == torch.float32


SHIPPED = data_dir() / "checkpoints" / "lite2-captioner.safetensors"


@pytest.mark.skipif(not SHIPPED.is_file(), reason="no captioner yet")
def test_the_shipped_captioner_tells_of_what_it_sees():
    """People are what Flickr8k has most of; it has hardly a cat."""
    assert SHIPPED.stat().st_size <= 10_000_000
    captioner = load_captioner()
    pictures = (data.astronaut(), data.rocket())
    person, rocket = (captioner.captions(torch.from_numpy(p).permute(2, 0, 1)[None] / 255)[0] for p in pictures)
    assert {"man", "woman", "person", "girl", "boy", "child"} & set(person.split())
    assert person != rocket
    assert all(3 <= len(sentence.split()) <= LENGTH for sentence in (person, rocket))
