"""Trains the captioner's decoder on Flickr8k over cached maps of the locked network; dev CIDEr chooses the epoch.

``python data/checkpoints/make_captioner.py DATA_ROOT OUTPUT.safetensors`` writes it with a JSON of figures.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from psic_core.config import data_root
from psic_core.datasets.folders import Flickr8k, in_memory
from psic_core.lab.captioner import (
    LENGTH,
    PAD,
    SIZE,
    SPECIAL,
    START,
    STOP,
    UNKNOWN,
    CaptionDecoder,
    LiteCaptioner,
    load_captioner,
    search,
)
from psic_core.metrics import caption_scores, tokenise
from psic_core.training.checkpoints import provenance
from psic_core.training.files import store_tensors


class CaptionConfig(NamedTuple):
    """The recipe."""

    epochs: int = 7
    batch_size: int = 64  # captions
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    dropout: float = 0.2
    smoothing: float = 0.1  # of the labels
    least: int = 5  # occurrences of a word of the vocabulary
    views: int = 2  # of each picture: as it is; mirrored
    seed: int = 0


def vocabulary_of(captions: Sequence[Sequence[str]], least: int) -> tuple[str, ...]:
    """`SPECIAL`, then the words that occur at least so often, the most frequent first."""
    counts = Counter(word for row in captions for text in row for word in tokenise(text).split())
    kept = [word for word, n in counts.items() if n >= least]
    return (*SPECIAL, *sorted(kept, key=lambda word: (-counts[word], word)))


def encode(captions: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> Int64[Tensor, "n captions length"]:
    """Captions as ids: `START`, at most `LENGTH` words, `STOP`, then `PAD`; words not in the vocabulary `UNKNOWN`.

    Raises:
        ValueError: Pictures with different numbers of captions.
    """
    if len({len(row) for row in captions}) != 1:
        raise ValueError("every picture needs the same number of captions to be trained on as one tensor")
    number = {word: i for i, word in enumerate(vocabulary)}
    ids = torch.full((len(captions), len(captions[0]), LENGTH + 2), PAD)
    for i, row in enumerate(captions):
        for j, text in enumerate(row):
            words = [number.get(word, UNKNOWN) for word in tokenise(text).split()[:LENGTH]]
            ids[i, j, : len(words) + 2] = torch.tensor([START, *words, STOP])
    return ids


def picture_maps(
    captioner: LiteCaptioner, pictures: UInt8[Tensor, "n 3 height width"], views: int, cache: Path | None = None
) -> Float[Tensor, "views n places channels"]:
    """Maps of each picture as it is and, for two views, mirrored; float16, kept in the folder ``cache`` by content."""
    digest = hashlib.sha256(repr((captioner.name, views, tuple(pictures.shape))).encode())
    digest.update(pictures.numpy().tobytes())
    path = cache / f"maps-{digest.hexdigest()[:16]}.safetensors" if cache else None
    if path and path.is_file():
        return load_file(path)["maps"]
    looks = (pictures, pictures.flip(-1))[:views]
    maps = torch.stack([_maps(captioner, look) for look in looks])
    if path:
        store_tensors({"maps": maps}, path)
    return maps


def _maps(captioner: LiteCaptioner, pictures: Tensor) -> Float[Tensor, "n places channels"]:
    chunks = tqdm(pictures.split(32), desc="maps", mininterval=5)
    return torch.cat([captioner.maps(chunk.float() / 255).half() for chunk in chunks])


def batches_by_length(ids: Int64[Tensor, "n length"], size: int) -> Iterator[Int64[Tensor, " batch"]]:
    """Rows in random batches of about equal lengths, so that little is padded."""
    lengths = (ids != PAD).sum(1)
    batches = (lengths + 2 * torch.rand(len(ids))).argsort().split(size)
    for i in torch.randperm(len(batches)).tolist():
        yield batches[i]


def train_decoder(
    decoder: CaptionDecoder,
    maps: Float[Tensor, "views n places channels"],
    ids: Int64[Tensor, "n captions length"],
    dev_cider: Any,
    config: CaptionConfig,
) -> list[dict[str, float]]:
    """Train on cached maps, and leave the decoder as it was after the epoch of the highest dev CIDEr.

    Args:
        decoder: Trained in place.
        maps: Of the training pictures.
        ids: From `encode`.
        dev_cider: Called without arguments after every epoch.
        config: The recipe.

    Returns:
        For each epoch its ``loss`` (nats a word, smoothed labels) and ``dev cider``.
    """
    flat, owner = ids.flatten(0, 1), torch.arange(len(ids)).repeat_interleave(ids.shape[1])
    steps = config.epochs * -(-len(flat) // config.batch_size)
    optimiser = torch.optim.AdamW(decoder.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps, pct_start=0.15)
    rows, best = [], {}
    for _ in range(config.epochs):
        decoder.train()
        total = 0.0
        for index in tqdm(batches_by_length(flat, config.batch_size), total=steps // config.epochs, mininterval=10):
            picked = maps[torch.randint(len(maps), (len(index),)), owner[index]].float()
            words = flat[index][:, : int((flat[index] != PAD).sum(1).max())]
            logits = decoder(decoder.memory(picked), words[:, :-1])
            loss = functional.cross_entropy(
                logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=PAD, label_smoothing=config.smoothing
            )
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        decoder.eval()
        rows.append({"loss": round(total / len(flat), 4), "dev cider": round(dev_cider(), 4)})
        print(rows[-1], flush=True)
        if rows[-1]["dev cider"] == max(row["dev cider"] for row in rows):
            best = {key: value.clone() for key, value in decoder.state_dict().items()}
    decoder.load_state_dict(best)
    return rows


def make_captioner(output: Path, root: str | None, cache: Path, config: CaptionConfig | None = None) -> dict:
    """Train on Flickr8k train, choose on dev; write the decoder, its words, and a JSON with figures on dev and test."""
    config = config or CaptionConfig()
    flickr = {split: Flickr8k(data_root(root) / "flickr8k", split, SIZE) for split in ("train", "dev")}
    words = vocabulary_of(flickr["train"].captions, config.least)
    torch.manual_seed(config.seed)
    captioner = LiteCaptioner(CaptionDecoder(len(words), dropout=config.dropout), words)
    decoder = captioner.decoder.requires_grad_(True)
    maps = picture_maps(captioner, in_memory(flickr["train"]), config.views, cache)
    dev = picture_maps(captioner, in_memory(flickr["dev"]), 1, cache)[0].float()

    def dev_cider() -> float:
        said = captioner.words(torch.cat([search(decoder, m, beams=1) for m in dev.split(100)]))
        return caption_scores(said, flickr["dev"].captions)["cider"]

    epochs = train_decoder(decoder, maps, encode(flickr["train"].captions, words), dev_cider, config)
    card = {"recipe": config._asdict(), "words": len(words), "epochs": epochs, **provenance()}
    tensors = {key: value.half() for key, value in decoder.state_dict().items()}
    store_tensors(tensors, output, {"vocabulary": json.dumps(words), "card": json.dumps(card)})
    finished = load_captioner(output)  # what ships is what is measured
    card["figures"] = {split: captioner_figures(finished, root, split, cache) for split in ("dev", "test")}
    output.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(card["figures"], indent=1))
    return card


def captioner_figures(captioner: LiteCaptioner, root: str | None, split: str, cache: Path) -> dict[str, float]:
    """BLEU@1 to 4 and CIDEr on the untouched pictures of a split of Flickr8k."""
    flickr = Flickr8k(data_root(root) / "flickr8k", split, SIZE)
    maps = picture_maps(captioner, in_memory(flickr), 1, cache)[0].float()
    said = captioner.words(torch.cat([search(captioner.decoder, m) for m in maps.split(50)]))
    scores = caption_scores(said, flickr.captions)
    return {name: round(scores[name], 4) for name in ("bleu1", "bleu2", "bleu3", "bleu4", "cider")}


if __name__ == "__main__":
    make_captioner(Path(sys.argv[2]), sys.argv[1], Path("build/cache"))
