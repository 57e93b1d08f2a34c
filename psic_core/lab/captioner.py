"""A captioner: pictures in, sentences out. It takes no part in the attack; it tells how far that carries."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from psic_core.config import data_dir
from psic_core.models.lite_clip import LITE_MEAN, LITE_STD, lite_trunk
from psic_core.models.vlp import prepare
from psic_core.training.files import read_tensors

LENGTH = 20  # words, or tokens, of a caption at most
SPECIAL = ("<pad>", "<start>", "<stop>", "<unknown>")  # the first words of every vocabulary of ours
PAD, START, STOP, UNKNOWN = range(4)
SIZE = 160  # side in pixels of what it reads
PLACES, CHANNELS = 25, 1280  # EfficientNet-Lite's map of that: 5 × 5


class CaptionDecoder(nn.Module):
    """A small transformer from a picture's map to words; the same matrix embeds and predicts them.

    Args:
        words: Size of the vocabulary, `SPECIAL` included.
        dropout: In training.
    """

    def __init__(self, words: int, dropout: float = 0.2) -> None:
        super().__init__()
        width = 256
        self.image = nn.Sequential(nn.Linear(CHANNELS, width), nn.LayerNorm(width), nn.Dropout(dropout))
        self.place = nn.Parameter(torch.zeros(PLACES, width))
        self.embed = nn.Embedding(words, width)
        self.position = nn.Parameter(torch.zeros(LENGTH + 1, width))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, 2, nn.LayerNorm(width))
        nn.init.normal_(self.embed.weight, std=width**-0.5)  # so that its transpose predicts with logits around 1

    def memory(self, maps: Float[Tensor, "batch places channels"]) -> Float[Tensor, "batch places width"]:
        """What the words attend to."""
        return self.image(maps) + self.place

    def forward(
        self, memory: Float[Tensor, "batch places width"], ids: Int64[Tensor, "batch length"], last: bool = False
    ) -> Float[Tensor, "batch predicted words"]:
        """Logits of the word after each one of ``ids``, which begin with `START`; or only of that after the last."""
        length = ids.shape[1]
        x = self.embed(ids) * self.embed.embedding_dim**0.5 + self.position[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, ids.device)
        states = self.layers(self.dropout(x), memory, tgt_mask=mask, tgt_is_causal=True)
        return (states[:, -1:] if last else states) @ self.embed.weight.T


@torch.no_grad()
def search(
    decoder: CaptionDecoder, maps: Float[Tensor, "batch places channels"], beams: int = 3
) -> Int64[Tensor, "batch length"]:
    """Beam search; greedy with one beam.

    Args:
        decoder: In eval mode.
        maps: Of the pictures.
        beams: Sentences kept at every word.

    Returns:
        The words' ids without `START` and `STOP`, `PAD` after the last.
    """
    batch, memory = len(maps), decoder.memory(maps).repeat_interleave(beams, 0)
    ids = torch.full((batch * beams, 1), START, device=maps.device)
    scores = torch.full((batch, beams), -torch.inf, device=maps.device)
    scores[:, 0] = 0  # all beams start as one
    rows = beams * torch.arange(batch, device=maps.device)[:, None]
    for _ in range(LENGTH):
        chance = decoder(memory, ids, last=True)[:, 0].float().log_softmax(-1)
        chance[:, [PAD, START, UNKNOWN]] = -torch.inf
        ended = (ids[:, -1] == STOP) | (ids[:, -1] == PAD)
        chance[ended] = -torch.inf
        chance[ended, PAD] = 0  # an ended sentence stays as it is
        total = scores[..., None] + chance.reshape(batch, beams, -1)
        scores, best = total.flatten(1).topk(beams)
        origin, word = (rows + best // chance.shape[1]).flatten(), (best % chance.shape[1]).flatten()
        ids = torch.cat([ids[origin], word[:, None]], dim=1)
        if ((word == STOP) | (word == PAD)).all():
            break
    lengths = (ids != PAD).sum(1).reshape(batch, beams) - 1  # with STOP, without START
    # The sum of log-probabilities prefers short sentences, their mean long ones.
    chosen = ids[(rows[:, 0] + (scores / lengths**0.7).argmax(1)), 1:]
    chosen = chosen.masked_fill(chosen == STOP, PAD)
    return nn.functional.pad(chosen, (0, LENGTH - chosen.shape[1]), value=PAD)


class LiteCaptioner(nn.Module):
    """Pictures to sentences: EfficientNet-Lite2's map before pooling, read by a `CaptionDecoder`.

    Args:
        decoder: Trained by ``data/checkpoints/make_captioner.py``.
        vocabulary: The words by id; begins with `SPECIAL`.
    """

    name = "lite2-captioner"  # what tables call it

    def __init__(self, decoder: CaptionDecoder, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.trunk, self.decoder = lite_trunk(2), decoder
        self.vocabulary = tuple(vocabulary)
        self.register_buffer("mean", torch.tensor(LITE_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(LITE_STD)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def maps(self, pictures: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch places channels"]:
        """What the network sees in each of 5 × 5 places, row by row."""
        seen = self.trunk.forward_features(prepare(pictures, SIZE, self.mean, self.std))
        return seen.flatten(2).transpose(1, 2)

    def caption_ids(self, pictures: Float[Tensor, "batch 3 height width"]) -> Int64[Tensor, "batch length"]:
        """Captions of pictures in [0, 1], of any size: `LENGTH` ids of its vocabulary, 0 after the last."""
        return search(self.decoder, self.maps(pictures))

    def words(self, ids: Int64[Tensor, "batch length"]) -> list[str]:
        """The sentences that `caption_ids` stand for: lower-case words with spaces between them, no full stop."""
        return [" ".join(self.vocabulary[i] for i in row if i != PAD) for row in ids.tolist()]

    def captions(self, pictures: Float[Tensor, "batch 3 height width"]) -> list[str]:
        """A sentence for each picture in [0, 1], of any size."""
        return self.words(self.caption_ids(pictures))

    def train(self, mode: bool = True) -> "LiteCaptioner":
        """A captioner that is used never trains: no dropout."""
        return super().train(False)


def load_captioner(path: str | Path | None = None) -> LiteCaptioner:
    """The frozen captioner ``lite2-captioner``, or another of its kind.

    Args:
        path: Another file than the shipped one.

    Raises:
        ValueError: The file holds no captioner.
        FileNotFoundError: The weights are not there.
    """
    path = Path(path) if path else data_dir() / "checkpoints" / "lite2-captioner.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no captioner at {path}; data/checkpoints/make_captioner.py makes it")
    tensors, metadata = read_tensors(path)
    vocabulary = json.loads(metadata.get("vocabulary", "[]"))
    decoder = CaptionDecoder(len(vocabulary))
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in decoder.state_dict().items()}:
        raise ValueError(f"{path} is no captioner: its tensors are not those of a decoder of {len(vocabulary)} words")
    decoder.load_state_dict({name: t.float() for name, t in tensors.items()})
    return LiteCaptioner(decoder, vocabulary)
