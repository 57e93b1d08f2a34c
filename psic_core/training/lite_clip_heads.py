"""Trains both heads of lite-clip and its like: contrastive, towers locked (locked-image tuning, Zhai et al. 2022)."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from psic_core.config import data_root
from psic_core.datasets.folders import Flickr8k, in_memory
from psic_core.datasets.scenes import Scenes
from psic_core.evidence import caption_ids
from psic_core.metrics import recall_at_k
from psic_core.models.lite_clip import LITE_CLIPS, LITE_SIZE, lite_classifier, lite_clip_towers
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import (
    provenance,
    store_tensors,
)
from psic_core.training.pairs import Pairs
from psic_core.training.phase import load_pairs

CLASS_PROMPTS = ("a photo of a {}.", "a {} in a picture.", "{}")


class HeadConfig(NamedTuple):
    """The recipe; a trial takes about a minute on two cores once the features are cached."""

    epochs: int = 40
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    views: int = 2  # cached augmentations of each picture: as it is; mirrored and cropped
    distill: float = 0.5  # weight of the ImageNet classifier's opinion over class names
    dropout: float = 0.1  # on the towers' features
    seed: int = 0


class TowerFeatures(NamedTuple):
    """What the locked towers say, before the heads."""

    image: Float[Tensor, "views n 1280"]
    text: Float[Tensor, "n captions 384"]
    ids: Tensor  # equal numbers for equal captions


@torch.no_grad()
def tower_features(target: Target, pairs: Pairs, views: int, cache: Path | None = None) -> TowerFeatures:
    """Pooled features of each picture's views and of each caption, cached at ``cache`` when given."""
    content = _content(pairs, views)
    if cache and cache.is_file() and _cached_content(cache) == content:
        return _read(cache)
    image = torch.stack([_image_features(target, pairs.pictures, view) for view in range(views)])
    flat = [caption for row in pairs.captions for caption in row]
    ids = caption_ids(flat)
    distinct = _text_features(target, list(dict.fromkeys(c.strip().casefold() for c in flat)))
    text = distinct[ids].reshape(len(pairs), -1, distinct.shape[1])
    features = TowerFeatures(image, text, ids.reshape(len(pairs), -1))
    if not cache:
        return features
    store_tensors({"image": image.half(), "text": text.half(), "ids": features.ids}, cache, {"content": content})
    return _read(cache)  # rounded: the first run trains the same heads as a later one


def _content(pairs: Pairs, views: int) -> str:
    digest = hashlib.sha256(repr((views, list(pairs.captions), tuple(pairs.pictures.shape))).encode())
    digest.update(pairs.pictures.numpy().tobytes())
    return digest.hexdigest()


def _cached_content(cache: Path) -> str | None:
    with safe_open(cache, "pt") as file:
        return (file.metadata() or {}).get("content")


def _read(cache: Path) -> TowerFeatures:
    found = load_file(cache)
    return TowerFeatures(found["image"].float(), found["text"].float(), found["ids"])


def _image_features(target: Target, pictures: Tensor, view: int) -> Float[Tensor, "n 1280"]:
    out, rng = [], torch.Generator().manual_seed(view)
    for chunk in tqdm(pictures.split(32), desc=f"view {view}", mininterval=5, disable=None):
        x = chunk.float() / 255
        if view:
            x = x.flip(-1) if view % 2 else x
            side = int(target.size * (0.75 + 0.2 * float(torch.rand((), generator=rng))))
            top, left = torch.randint(x.shape[-1] - side + 1, (2,), generator=rng).tolist()
            x = x[..., top : top + side, left : left + side]
        out.append(target.model.visual.trunk(target.preprocess(x)))
    return torch.cat(out)


def _text_features(target: Target, texts: list[str]) -> Float[Tensor, "n 384"]:
    text, out = target.model.text, []
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths together: less padding
    for start in tqdm(range(0, len(texts), 128), desc="captions", mininterval=5, disable=None):
        tokens = target.tokenizer([texts[i] for i in order[start : start + 128]])
        tokens = tokens[:, : tokens.ne(0).any(0).nonzero().max() + 1]
        mask = tokens.ne(0).long()
        out.append(text.pooler(text.transformer(input_ids=tokens, attention_mask=mask), mask))
    return torch.cat(out)[torch.tensor(order).argsort()]


class Heads(nn.Module):
    """The two linear maps and the temperature."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(1280, dim, bias=False), nn.Linear(384, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))  # open_clip's start: 1 / 0.07

    def embed(self, features: Tensor, head: nn.Linear) -> Tensor:
        """Unit embeddings of tower features."""
        return functional.normalize(head(self.dropout(features)), dim=-1)

    def contrastive(self, image: Tensor, text: Tensor, same: Bool[Tensor, "b b"]) -> Float[Tensor, ""]:
        """Symmetric InfoNCE; equal captions of other pictures are no negatives."""
        logits = self.logit_scale.exp() * self.embed(image, self.image) @ self.embed(text, self.text).T
        logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -torch.inf)
        own = torch.arange(len(logits))
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2

    def distillation(self, image: Tensor, classes: Tensor, teacher: Tensor) -> Float[Tensor, ""]:
        """Cross-entropy between the ImageNet classifier's probabilities and those over class names."""
        logits = self.logit_scale.exp() * self.embed(image, self.image) @ self.embed(classes, self.text).T
        return -(teacher * functional.log_softmax(logits, dim=1)).sum(1).mean()


def train_heads(
    target: Target, features: list[TowerFeatures], config: HeadConfig
) -> tuple[dict[str, Tensor], list[float]]:
    """Train the heads on cached features and put them into ``target``.

    Returns:
        The heads by their open_clip names, and the loss of each epoch.
    """
    if (n := sum(len(f.text) for f in features)) < config.batch_size:
        raise ValueError(f"{n} pairs do not fill a batch of {config.batch_size}; give more, or a smaller batch_size")
    torch.manual_seed(config.seed)
    heads = Heads(target.model.visual.head.proj.out_features, config.dropout)
    classifier = lite_classifier(LITE_CLIPS[target.name])
    prompts = [p.format(name) for p in CLASS_PROMPTS for name in IMAGENET_CLASSNAMES]
    with torch.no_grad():
        classes = _text_features(target, prompts).reshape(len(CLASS_PROMPTS), len(IMAGENET_CLASSNAMES), -1)
    image = torch.cat([f.image for f in features], dim=1)
    offsets = [0, *torch.tensor([int(f.ids.max()) + 1 for f in features]).cumsum(0)[:-1].tolist()]
    text = torch.cat([f.text for f in features])
    ids = torch.cat([f.ids + offset for f, offset in zip(features, offsets, strict=True)])
    steps = config.epochs * (n // config.batch_size)
    optimiser = torch.optim.AdamW(heads.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps)
    losses = []
    for _ in tqdm(range(config.epochs), desc="heads"):
        total = 0.0
        for index in torch.randperm(n).split(config.batch_size)[: n // config.batch_size]:
            view = torch.randint(len(image), (len(index),))
            choice = torch.randint(text.shape[1], (len(index),))
            x, same = image[view, index], ids[index, choice]
            loss = heads.contrastive(x, text[index, choice], same[:, None] == same[None, :])
            if config.distill:
                teacher = classifier(x).softmax(1)
                names = classes[int(torch.randint(len(classes), ()))]
                loss = loss + config.distill * heads.distillation(x, names, teacher)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / max(1, n // config.batch_size))
    state = {
        "visual.head.proj.weight": heads.image.weight.detach(),
        "text.proj.weight": heads.text.weight.detach(),
        "logit_scale": heads.logit_scale.detach(),
    }
    target.model.load_state_dict(state, strict=False)
    return state, losses


def train_lite_clip(
    pairs: list[Pairs], config: HeadConfig, cache: Path, name: str = "lite-clip"
) -> tuple[Target, dict[str, Tensor], list[float]]:
    """One of `LITE_CLIPS` from its two pretrained towers: features first (cached), then the heads."""
    target, prefix = lite_clip_towers(name), f"towers{LITE_CLIPS[name] or ''}"
    features = [
        tower_features(target, p, config.views, cache / f"{prefix}-{i}-{len(p)}.safetensors")
        for i, p in enumerate(pairs)
    ]
    state, losses = train_heads(target, features, config)
    return target, state, losses


def make_lite_clip(
    output: Path, root: str | None, scenes: int, cache: Path, name: str = "lite-clip"
) -> dict[str, float]:
    """Train the heads of lite-clip, or of another of `LITE_CLIPS`, on Flickr8k train, scenes and class names.

    They are written with a JSON of figures; each model has a seed of its own.
    """
    config = HeadConfig(seed=LITE_CLIPS[name])
    pairs = [load_pairs([name], root, scenes, LITE_SIZE) for name in ("flickr8k", "scenes")]
    target, state, losses = train_lite_clip(pairs, config, cache, name)
    figures = lite_clip_figures(target, root)
    output.parent.mkdir(parents=True, exist_ok=True)
    card = {
        "recipe": config._asdict(),
        "figures": figures,
        "losses": [round(v, 4) for v in losses],
        **provenance(),
    }
    save_file({k: v.half() for k, v in state.items()}, output, metadata={"card": json.dumps(card)})
    output.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return figures


def lite_clip_figures(target: Target, root: str | None) -> dict[str, float]:
    """R@1 on Flickr8k's 1k test split and zero-shot accuracy on 500 held-out scenes."""
    flickr = Flickr8k(data_root(root) / "flickr8k", "test", LITE_SIZE)
    image = target.encode_images(in_memory(flickr)).cpu()
    text = target.encode_text([c for row in flickr.captions for c in row]).cpu()
    own = torch.eye(len(flickr), dtype=torch.bool).repeat_interleave(5, dim=1)
    scores = image @ text.T
    scenes = Scenes("test", 500, LITE_SIZE)
    drawn = [scenes[i] for i in range(len(scenes))]
    features = target.encode_images(torch.stack([s.image for s in drawn])).cpu()
    names = target.encode_text([f"a photo of a {c}" for c in scenes.classes]).cpu()
    labels = torch.tensor([s.class_index for s in drawn])
    figures = {f"flickr8k i2t R@{k}": recall_at_k(scores, own, k) for k in (1, 5, 10)}
    figures |= {f"flickr8k t2i R@{k}": recall_at_k(scores.T, own.T, k) for k in (1, 5, 10)}
    figures["scenes top-1"] = float(((features @ names.T).argmax(1) == labels).float().mean())
    return {name: round(value, 4) for name, value in figures.items()}
