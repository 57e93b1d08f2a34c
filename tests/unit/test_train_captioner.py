"""The captioner's training: words as ids, cached maps, and a decoder that learns what its pictures show."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from psic_core import train_captioner
from psic_core.captioner import LENGTH, PAD, SPECIAL, START, STOP, UNKNOWN, CaptionDecoder, LiteCaptioner, search
from psic_core.cli import main
from psic_core.train_captioner import (
    CaptionConfig,
    batches_by_length,
    encode,
    make_captioner,
    picture_maps,
    train_decoder,
    vocabulary_of,
)

CAPTIONS = [("A red dog .", "a dog runs"), ("Two cats !", "a cat, a dog"), ("a red cat", "a dog")]


# --- words ------------------------------------------------------------------------------------------


def test_the_vocabulary_holds_frequent_words_the_most_frequent_first():
    assert vocabulary_of(CAPTIONS, 1)[:6] == (*SPECIAL, "a", "dog")
    assert vocabulary_of(CAPTIONS, 2) == (*SPECIAL, "a", "dog", "cat", "red")
    assert vocabulary_of(CAPTIONS, 5) == (*SPECIAL, "a")


def test_captions_become_ids_and_rare_words_unknown():
    words = vocabulary_of(CAPTIONS, 2)
    ids = encode(CAPTIONS, words)
    assert ids.shape == (3, 2, LENGTH + 2)
    assert ids[0, 0, :6].tolist() == [START, words.index("a"), words.index("red"), words.index("dog"), STOP, PAD]
    assert ids[1, 0, :5].tolist() == [START, UNKNOWN, UNKNOWN, STOP, PAD]


def test_long_captions_are_cut_and_still_stop():
    ids = encode([("a " * 50,)], vocabulary_of(CAPTIONS, 2))
    assert ids[0, 0, -1] == STOP
    assert (ids[0, 0, 1:-1] == 4).all()


def test_pictures_with_unequal_numbers_of_captions_are_refused():
    with pytest.raises(ValueError, match="same number of captions"):
        encode([("a",), ("a", "b")], SPECIAL)


def test_batches_hold_every_row_once_and_rows_of_like_length():
    lengths = torch.arange(200) % 18 + 3
    ids = (torch.arange(LENGTH + 2)[None, :] < lengths[:, None]).long()
    batches = list(batches_by_length(ids, 20))
    assert sorted(torch.cat(batches).tolist()) == list(range(200))
    assert max(int(lengths[b].max() - lengths[b].min()) for b in batches) <= 5


# --- maps -------------------------------------------------------------------------------------------


def test_maps_are_cached_by_content_and_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    captioner = LiteCaptioner(CaptionDecoder(8), (*SPECIAL, *"abcd"))
    pictures = torch.randint(256, (3, 3, 160, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    maps = picture_maps(captioner, pictures, 2, tmp_path / "new")
    assert maps.shape == (2, 3, 25, 1280)
    assert torch.equal(maps[1], picture_maps(captioner, pictures.flip(-1), 1)[0])
    monkeypatch.setattr(train_captioner, "_maps", lambda *_: pytest.fail("the cache was not read"))
    assert torch.equal(picture_maps(captioner, pictures, 2, tmp_path / "new"), maps)
    with pytest.raises(pytest.fail.Exception):
        picture_maps(captioner, pictures.flip(0), 2, tmp_path / "new")


# --- training ---------------------------------------------------------------------------------------


def synthetic() -> tuple[Tensor, Tensor]:
    """Twelve pictures of three kinds, each kind with its own two captions."""
    rng = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 25, 1280, generator=rng)
    maps = (kinds[torch.arange(12) % 3] + 0.1 * torch.randn(12, 25, 1280, generator=rng))[None].half()
    said = [("a red dog",) * 2, ("two cats sit there",) * 2, ("nobody",) * 2]
    return maps, encode([said[i % 3] for i in range(12)], (*SPECIAL, *WORDS))


WORDS = ("a", "red", "dog", "two", "cats", "sit", "there", "nobody")


def test_the_decoder_learns_and_training_is_repeatable():
    maps, ids = synthetic()
    config, found = CaptionConfig(epochs=12, batch_size=8, learning_rate=3e-3, smoothing=0.0), []
    for _ in range(2):
        torch.manual_seed(0)
        decoder = CaptionDecoder(4 + len(WORDS), width=32, dropout=0.0)
        rows = train_decoder(decoder, maps, ids, lambda: 0.0, config)
        found.append((rows, decoder.state_dict()))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert not decoder.training
    assert torch.equal(search(decoder, maps[0].float(), beams=2), ids[:, 0, 1:-1].masked_fill(ids[:, 0, 1:-1] == 2, 0))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][key], value) for key, value in found[1][1].items())


def test_the_epoch_of_the_best_dev_score_is_kept():
    maps, ids = synthetic()
    decoder, seen = CaptionDecoder(4 + len(WORDS), width=32), []

    def score() -> float:
        seen.append(decoder.embed.weight.clone())
        return (0.1, 0.7, 0.2)[len(seen) - 1]

    rows = train_decoder(decoder, maps, ids, score, CaptionConfig(epochs=3, batch_size=8))
    assert [row["dev cider"] for row in rows] == [0.1, 0.7, 0.2]
    assert torch.equal(decoder.embed.weight, seen[1])


def small_flickr(root: Path) -> Path:
    """Three splits of four pictures in Flickr8k's layout."""
    folder = root / "flickr8k"
    (folder / "Images").mkdir(parents=True)
    (folder / "splits").mkdir()
    lines, colours = ["image,caption"], {"red": (220, 30, 20), "blue": (20, 40, 210)}
    for split in ("train", "dev", "test"):
        names = []
        for i, (colour, pixel) in enumerate([*colours.items()] * 2):
            names.append(f"{split}{i}.jpg")
            Image.new("RGB", (180, 170), pixel).save(folder / "Images" / names[-1])
            lines += [f"{names[-1]},A {colour} wall .", f"{names[-1]},the wall is {colour}"]
        (folder / "splits" / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return root


def test_a_captioner_is_made_from_a_folder(tmp_path: Path):
    root, output = small_flickr(tmp_path), tmp_path / "made" / "captioner.safetensors"
    config = CaptionConfig(epochs=25, batch_size=4, learning_rate=2e-3, least=1)
    card = make_captioner(output, str(root), tmp_path / "cache", config)
    assert set(card["figures"]) == {"dev", "test"}
    assert set(card["figures"]["test"]) == {"bleu1", "bleu2", "bleu3", "bleu4", "cider"}
    assert card["figures"]["test"]["bleu1"] > 0.9
    assert output.with_suffix(".json").is_file()
    captioner = train_captioner.load_captioner("lite2-captioner", output)
    blue = torch.tensor([0.08, 0.16, 0.82])[None, :, None, None].expand(1, 3, 90, 120)
    assert "blue" in captioner.captions(blue)[0]


def test_the_command_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("PSIC_DATA_ROOT", raising=False)
    assert main(["train-captioner", "-o", str(tmp_path / "captioner.safetensors")]) == 2
    assert "psic train-captioner: no data root: pass --data-root DIR" in capsys.readouterr().err
