"""Training data in memory: pictures, their captions, and what a target makes of both, computed once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from open_clip import IMAGENET_CLASSNAMES
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from psic_core.evidence import caption_ids
from psic_core.models.vlp import Target
from psic_core.objectives import Pool
from psic_core.training.files import store_tensors

PROMPTS = tuple(f"a photo of a {name}." for name in IMAGENET_CLASSNAMES)  # of what a picture without captions shows


@dataclass
class Pairs:
    """N pictures with C captions each.

    Attributes:
        pictures: ``(N, 3, H, W)`` uint8.
        captions: N tuples of C strings; an empty one where a picture has none.
        image_features: Unit features of the clean pictures; ``None`` until `with_features`.
        text_features: Unit features of the captions, picture by picture.
        caption_ids: Equal numbers for equal captions, for the mask of Eq. 8.
    """

    pictures: UInt8[Tensor, "n 3 height width"]
    captions: Sequence[tuple[str, ...]]
    image_features: Float[Tensor, "n d"] | None = None
    text_features: Float[Tensor, "n c d"] | None = None
    caption_ids: Int64[Tensor, "n c"] | None = None

    def __post_init__(self) -> None:
        if len(self.pictures) != len(self.captions):
            raise ValueError(f"{len(self.pictures)} pictures but {len(self.captions)} lists of captions")

    def __len__(self) -> int:
        return len(self.pictures)

    def with_features(self, target: Target, cache: str | Path | None = None) -> "Pairs":
        """The same pairs with the target's features of clean pictures and captions (Eq. 5 uses the original x).

        A picture without captions gets the label that the target reads in it: that is what an attacker would index.

        Args:
            target: The model under attack.
            cache: Folder for a file named by the content's hash; ``None`` computes anew.
        """
        count = {len(c) for c in self.captions if c} or {1}
        if len(count) != 1:
            raise ValueError("pictures need the same number of captions, or none, to be cached as one tensor")
        path = Path(cache) / f"features-{self._content(target)}.safetensors" if cache else None
        found = load_file(path) if path and path.is_file() else _features(self, target, *count)
        if path and not path.is_file():
            store_tensors(found, path)
        labels = [(prompt,) * min(count) for prompt in PROMPTS]
        captions = [own or labels[k] for own, k in zip(self.captions, found["label"].tolist(), strict=True)]
        ids = caption_ids([c for row in captions for c in row]).reshape(len(captions), -1)
        return Pairs(self.pictures, captions, found["image"], found["text"], ids)

    def pool(self, index: Int64[Tensor, " batch"], k: int, rng: torch.Generator) -> Pool:
        """The batch's pairs and others, drawn until there are k (all of the batch's in any case).

        The others cost nothing, because their features are here; so K does not depend on the batch size.

        Args:
            index: The batch's pictures.
            k: K of Eq. 5 to 8.
            rng: Draws the others and one caption for each picture.
        """
        others = torch.randperm(len(self), generator=rng)
        others = others[~torch.isin(others, index)][: max(k - len(index), 0)]
        chosen = torch.cat([index, others])
        choice = torch.randint(self.text_features.shape[1], chosen.shape, generator=rng)
        return Pool(self.image_features[chosen], self.text_features[chosen, choice], self.caption_ids[chosen, choice])

    def __add__(self, other: "Pairs") -> "Pairs":
        """Both, one after the other; features are dropped."""
        if self.pictures.shape[1:] != other.pictures.shape[1:]:
            one, two = (tuple(p.pictures.shape[-2:]) for p in (self, other))
            raise ValueError(f"pictures of {one} and of {two} pixels cannot be joined; load both at one size")
        return Pairs(torch.cat([self.pictures, other.pictures]), [*self.captions, *other.captions])

    def thin(self, n: int) -> "Pairs":
        """At most n of the pictures, evenly spread, with whatever features they have."""
        keep = torch.linspace(0, len(self) - 1, min(n, len(self)), dtype=torch.float64).round().long()
        parts = (self.image_features, self.text_features, self.caption_ids)
        return Pairs(
            self.pictures[keep],
            [self.captions[i] for i in keep.tolist()],
            *(p if p is None else p[keep] for p in parts),
        )

    def _content(self, target: Target) -> str:
        digest = hashlib.sha256(target.name.encode())
        for name, p in target.model.state_dict().items():
            if "proj" in name:  # the part that this project trains
                digest.update(p.cpu().numpy().tobytes())
        digest.update(self.pictures.numpy().tobytes())
        digest.update(repr(list(self.captions)).encode())
        return digest.hexdigest()[:16]


def _features(pairs: Pairs, target: Target, count: int) -> dict[str, Tensor]:
    batches = tqdm(pairs.pictures.split(32), desc=f"{target.name} reads pictures", leave=False)
    image = torch.cat([target.encode_images(b).cpu() for b in batches])
    silent = torch.tensor([not c for c in pairs.captions])
    label, prompts = torch.zeros(len(pairs), dtype=torch.long), _read(target, PROMPTS) if silent.any() else None
    text = torch.zeros(len(pairs), count, image.shape[1])
    if prompts is not None:
        label[silent] = (image[silent] @ prompts.T).argmax(1)
        text[silent] = prompts[label[silent], None].expand(-1, count, -1)
    if not silent.all():
        text[~silent] = _read(target, [c for row in pairs.captions for c in row]).reshape(-1, count, image.shape[1])
    return {"image": image, "text": text, "label": label}


def _read(target: Target, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    chunks = [texts[i : i + 256] for i in range(0, len(texts), 256)]
    return torch.cat([target.encode_text(c).cpu() for c in tqdm(chunks, desc="captions", leave=False)])
