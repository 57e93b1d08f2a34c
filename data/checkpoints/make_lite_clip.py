"""Trains both heads of lite-clip and its like; the towers stay locked (locked-image tuning, Zhai et al. 2022,
https://arxiv.org/abs/2111.07991). ``python data/checkpoints/make_lite_clip.py lite-clip OUTPUT.safetensors DATA_ROOT``
writes them with a JSON of what the reader reads.

Both start from what the towers know. The text head is the identity. The image head's last thousand columns, which read
the tower's own ImageNet classifier, are the class names' text embeddings; the others are near zero. Then pictures learn
their captions, and the classifier's opinion over class names is distilled beside that, so that neither is lost.
"""

import hashlib
import io
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import resize
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.config import data_dir, data_root
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.datasets.folders import Flickr8k, Folder, ImageNetFolder, in_memory
from psic_core.evidence import caption_ids
from psic_core.lab.tasks import task_results
from psic_core.metrics import balanced_accuracy
from psic_core.models.images import pad_to, round_to_8_bits, to_pil, to_tensor
from psic_core.models.lite_clip import LITE_DIM, LITE_HEADS, contrastive, lite_clip_towers, text_features
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import load_checkpoint, provenance
from psic_core.training.files import store_tensors
from psic_core.training.pairs import Pairs
from psic_core.training.phase import load_pairs

CLASS_PROMPTS = OPENAI_IMAGENET_TEMPLATES[::8]  # ten of eighty; all would take minutes


@dataclass(frozen=True)
class HeadConfig:
    """The recipe, chosen on Flickr8k's dev split; a trial takes a minute of a core once the features are cached."""

    epochs: int = 40
    batch_size: int = 512
    learning_rate: float = 1e-3
    gentle_rate: float = 5e-4  # of the parts that start from what the towers know
    weight_decay: float = 0.1  # of the other parts
    views: int = 3  # cached looks at each picture: as it is; cropped; mirrored, cropped and through JPEG
    captions: tuple[int, ...] | None = None  # of each picture; None: all
    dropout: float = 0.4  # on the image tower's features
    opinion_dropout: float = 0.3  # on its classifier's opinion
    text_dropout: float = 0.1
    distill: float = 0.7  # weight of the classifier's opinion over class names
    distilled: int = 256  # pictures of the batch that are distilled too, beside:
    imagined: int = 320  # features pushed towards a class; Flickr8k has few of the thousand
    uncaptioned: int = 128  # photographs without captions
    seed: int = 0


class TowerFeatures(NamedTuple):
    """What the locked towers say, before the heads."""

    image: Float[Tensor, "views n features"]
    text: Float[Tensor, "n captions 384"]
    ids: Tensor  # equal numbers for equal captions


@torch.no_grad()
def tower_features(target: Target, pairs: Pairs, views: int, cache: Path | None = None) -> TowerFeatures:
    """Features of each picture's views and of each caption, in float16.

    Args:
        target: One of `LITE_CLIPS`.
        pairs: Pictures with equally many captions each; with none, ``text`` and ``ids`` are empty.
        views: How many looks at each picture.
        cache: File that keeps them; the caller names it by what it holds.
    """
    if cache and cache.is_file():
        return TowerFeatures(**load_file(cache))
    image = torch.stack([_image_features(target, pairs.pictures, view) for view in range(views)])
    flat = [caption for row in pairs.captions for caption in row]
    ids, text = torch.zeros(0, dtype=torch.long), torch.zeros(0, 384)
    if flat:
        ids = caption_ids(flat)
        text = text_features(target, list(dict.fromkeys(c.strip().casefold() for c in flat)))[ids]
    shape = (len(pairs), len(flat) // len(pairs))
    features = TowerFeatures(image.half(), text.half().reshape(*shape, 384), ids.reshape(shape))
    if cache:
        store_tensors(features._asdict(), cache)
    return features


def _image_features(target: Target, pictures: Tensor, view: int) -> Float[Tensor, "n features"]:
    rng = random.Random(1007 + 1000 * view)
    chunks = tqdm(pictures.split(32), desc=f"view {view}", mininterval=5, disable=None)
    looks = ([look(p.float() / 255, view, target.size, rng) for p in chunk] for chunk in chunks)
    return torch.cat([target.model.visual.trunk(target.preprocess(torch.stack(chunk))) for chunk in looks])


def look(
    x: Float[Tensor, "3 height width"], view: int, size: int, rng: random.Random
) -> Float[Tensor, "3 new_height new_width"]:
    """View 0: the picture. Others: a square of it at a brightness, mirrored half the time; even ones through JPEG."""
    if not view:
        return x
    side = int(min(x.shape[1:]) * rng.uniform(0.65, 1))
    top, left = (rng.randint(0, whole - side) for whole in x.shape[1:])
    x = x[:, top : top + side, left : left + side]
    if view % 2 == 0 or rng.random() < 0.5:
        x = x.flip(-1)
    if view % 2 == 0:
        to_pil(x[None]).save(buffer := io.BytesIO(), "JPEG", quality=rng.randint(20, 70))
        x = to_tensor(Image.open(buffer))[0]
    x = resize(x, [size, size], interpolation=3, antialias=True).clamp(0, 1)
    return (x * rng.uniform(0.85, 1.15)).clamp(0, 1)


class Heads(nn.Module):
    """Both heads and the temperature, while they learn.

    Args:
        seen: Features of pictures, to standardise by.
        names: Of the tower's classes, pooled text features of each prompt.
        config: Its dropouts.
    """

    def __init__(self, seen: Float[Tensor, "n features"], names: Float[Tensor, "c p 384"], config: HeadConfig) -> None:
        super().__init__()
        self.classes = len(names)
        seen = seen[:, : -self.classes].float()
        self.register_buffer("mean", seen.mean(0))
        self.register_buffer("deviation", seen.std(0) + 1e-3)
        self.register_buffer("middle", names.mean((0, 1)))
        self.text, self.opinion = nn.Linear(384, LITE_DIM, bias=False), nn.Linear(len(names), LITE_DIM, bias=False)
        self.rest = nn.Linear(seen.shape[1], LITE_DIM, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        nn.init.normal_(self.rest.weight, std=1e-3)
        nn.init.eye_(self.text.weight)
        with torch.no_grad():
            self.opinion.weight.copy_(functional.normalize(names.mean(1) - self.middle, dim=1).T)
        self.dropout, self.opinion_dropout = nn.Dropout(config.dropout), nn.Dropout(config.opinion_dropout)
        self.text_dropout = nn.Dropout(config.text_dropout)

    def image_embedding(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n d"]:
        """Unit embeddings of a `LiteTower`'s features."""
        rest, opinion = features.float().split([len(self.mean), self.classes], 1)
        rest = self.dropout((rest - self.mean) / self.deviation)
        return functional.normalize(self.rest(rest) + self.opinion(self.opinion_dropout(opinion)), dim=1)

    def text_embedding(self, features: Float[Tensor, "n 384"]) -> Float[Tensor, "n d"]:
        """Unit embeddings of pooled text features."""
        centred = functional.normalize(features.float() - self.middle, dim=1)
        return functional.normalize(self.text(self.text_dropout(centred)), dim=1)

    def distillation(
        self, image: Float[Tensor, "n d"], names: Float[Tensor, "c d"], teacher: Float[Tensor, "n c"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy between the classifier's probabilities and those over class names."""
        return functional.cross_entropy(self.logit_scale.exp() * image @ names.T, teacher)

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """Two linear maps with their biases, by their names in open_clip."""
        rest = self.rest.weight / self.deviation
        return {
            "visual.head.proj.weight": torch.cat([rest, self.opinion.weight], 1),
            "visual.head.proj.bias": -rest @ self.mean,
            "text.proj.weight": self.text.weight.clone(),
            "text.proj.bias": -self.text.weight @ self.middle,
            "logit_scale": self.logit_scale.clone(),
        }


@torch.no_grad()
def imagine(
    features: Float[Tensor, "m features"], classifier: nn.Linear, n: int, seed: int = 0
) -> Float[Tensor, "n features"]:
    """Features that have been pushed towards a class, each class equally often.

    Pooled features move along the class's own weights; the classifier's opinion is that of the moved ones.
    """
    rng = torch.Generator().manual_seed(seed)
    towards = functional.normalize(classifier.weight - classifier.weight.mean(0), dim=1)
    start = features[torch.randint(len(features), (n,), generator=rng)].float()
    kept, pushed = torch.rand(2, n, 1, generator=rng)
    width, classes = classifier.in_features, classifier.out_features
    pooled = start[:, :width]
    push = pooled.norm(dim=1, keepdim=True) * (0.1 + 0.9 * pushed) * towards[torch.arange(n) % classes]
    moved = (kept * pooled + push).clamp(min=0)
    return torch.cat([moved, start[:, width:-classes], (classifier(moved).log_softmax(1) / 2).exp()], 1)


def train_heads(
    target: Target,
    features: Sequence[TowerFeatures],
    uncaptioned: Float[Tensor, "n features"] | None = None,
    config: HeadConfig | None = None,
) -> list[float]:
    """Train the heads on cached features and put them into ``target``.

    Args:
        target: One of `LITE_CLIPS`; its tower gives the classifier, its tokenizer reads the names.
        features: Of sets of pictures with captions.
        uncaptioned: Of photographs without captions, for distillation alone.
        config: The recipe.

    Returns:
        The loss of each epoch.

    Raises:
        ValueError: Fewer pictures than a batch has.
    """
    config = config or HeadConfig()
    if (n := sum(len(f.text) for f in features)) < config.batch_size:
        raise ValueError(f"{n} pairs do not fill a batch of {config.batch_size}; give more, or a smaller batch_size")
    prompts = [prompt(name) for name in IMAGENET_CLASSNAMES for prompt in CLASS_PROMPTS]
    names = text_features(target, prompts).reshape(len(IMAGENET_CLASSNAMES), len(CLASS_PROMPTS), -1)
    torch.manual_seed(config.seed)
    image = torch.cat([f.image for f in features], 1)
    text, ids = _captions(features, config.captions)
    flat = image.flatten(0, 1)
    extra = [imagine(flat, target.model.visual.trunk.classifier, 12 * len(names), config.seed)]
    sizes = [config.imagined]
    if uncaptioned is not None:
        extra, sizes = [*extra, uncaptioned], [*sizes, config.uncaptioned]
    heads = Heads(image[0], names, config)
    steps = n // config.batch_size
    optimiser, schedule = _optimiser(heads, config, config.epochs * steps)
    losses = []
    for _ in tqdm(range(config.epochs), desc="heads", disable=None):
        total = 0.0
        for index in torch.randperm(n).split(config.batch_size)[:steps]:
            choice = torch.randint(text.shape[1], (len(index),))
            seen = image[torch.randint(len(image), (len(index),)), index]
            more = [e[torch.randint(len(e), (size,))] for e, size in zip(extra, sizes, strict=True)]
            prompted = names[:, int(torch.randint(names.shape[1], ()))]
            loss = _loss(heads, torch.cat([seen, *more]), text[index, choice], ids[index, choice], prompted, config)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / steps)
    target.model.load_state_dict(heads.tensors(), strict=False)
    return losses


def _captions(features: Sequence[TowerFeatures], chosen: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """All sets' text features and ids; ids of different sets differ."""
    chosen, parts, ids, offset = slice(None) if chosen is None else list(chosen), [], [], 0
    for f in features:
        parts.append(f.text[:, chosen])
        ids.append(f.ids[:, chosen] + offset)
        offset += int(f.ids.max()) + 1
    return torch.cat(parts), torch.cat(ids)


def _loss(
    heads: Heads, image: Tensor, text: Tensor, ids: Tensor, names: Tensor, config: HeadConfig
) -> Float[Tensor, ""]:
    """Contrastive on the pictures with captions, which stand first; distillation on the last of them and the others."""
    embedded, n = heads.image_embedding(image), len(text)
    same = ids[:, None] == ids[None, :]
    matched = contrastive(embedded[:n], heads.text_embedding(text), same, heads.logit_scale)
    first = max(n - config.distilled, 0)
    teacher = image[first:, -len(names) :].float() ** 2
    return matched + config.distill * heads.distillation(embedded[first:], heads.text_embedding(names), teacher)


def _optimiser(
    heads: Heads, config: HeadConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    gentle = [*heads.text.parameters(), *heads.opinion.parameters()]
    groups = [
        {"params": [*heads.rest.parameters(), heads.logit_scale], "weight_decay": config.weight_decay},
        {"params": gentle, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, config.learning_rate)
    rates = [config.learning_rate, config.gentle_rate]
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps, pct_start=0.15)


RECIPES = {
    "lite-clip": HeadConfig(),
    "lite1-clip": HeadConfig(epochs=26, seed=1),
    "lite2-clip": HeadConfig(captions=(3, 4), seed=2),  # never attacked: shares less of the captions with the others
}


def make_reader(output: Path, name: str, root: str | None, cache: Path) -> dict[str, dict[str, float]]:
    """Train the heads of one of `LITE_CLIPS` and write them, with a JSON of what it reads beside them.

    Args:
        output: A ``.safetensors`` file.
        name: Of the reader.
        root: The data root, with ``flickr8k``; ``photos`` is distilled where it is there.
        cache: Folder that keeps what the towers say.
    """
    target, recipe = lite_clip_towers(name), RECIPES[name]
    features = [_cached(target, load_pairs([data], root), recipe, cache) for data in ("flickr8k", "scenes")]
    photos, extra = data_root(root) / "photos", None
    if photos.is_dir():
        pictures = in_memory(Folder(photos, 256))
        extra = _cached(target, Pairs(pictures, [()] * len(pictures)), recipe, cache).image.flatten(0, 1)
    losses = train_heads(target, features, extra, recipe)
    dev = Flickr8k(data_root(root) / "flickr8k", "dev", 160)
    calibrate(target, Pairs(in_memory(dev), dev.captions))
    heads = {key: value.half() for key, value in target.model.state_dict().items() if key in LITE_HEADS}
    target.model.load_state_dict({key: value.float() for key, value in heads.items()}, strict=False)
    card = {
        "recipe": asdict(recipe),
        "reads": what_it_reads(target, root),
        "losses": [round(loss, 4) for loss in losses],
        **provenance(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(heads, output, metadata={"card": json.dumps(card)})
    output.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card["reads"]


def _cached(target: Target, pairs: Pairs, recipe: HeadConfig, cache: Path) -> TowerFeatures:
    content = hashlib.sha256(repr((target.name, target.size, recipe.views, list(pairs.captions))).encode())
    content.update(pairs.pictures.numpy().tobytes())
    return tower_features(target, pairs, recipe.views, cache / f"towers-{content.hexdigest()[:16]}.safetensors")


@torch.no_grad()
def calibrate(target: Target, pairs: Pairs) -> float:
    """Set the temperature under which a target's beliefs about held-out pairs are likeliest; returns its inverse.

    Args:
        target: Its ``logit_scale`` changes.
        pairs: Pictures that it has not seen, equally many captions each.
    """
    image = target.encode_images(pairs.pictures)
    text = [target.encode_text([row[c] for row in pairs.captions]) for c in range(len(pairs.captions[0]))]
    none = torch.zeros(len(image), len(image), dtype=torch.bool)
    scales = torch.linspace(5, 50, 91)
    surprise = [sum(contrastive(image, t, none, scale.log()) for t in text) for scale in scales]
    best = scales[torch.stack(surprise).argmin()]
    target.model.logit_scale.copy_(best.log())
    return float(best)


# --- what a reader's card says ------------------------------------------------------------------------------

SETS = {"flickr8k": 1000, "coco": 380, "imagenet": 500, "scenes": 500, "celeba": 1000}  # and how many pictures
CODECS = ("psic-q1", "psic-q2", "psic-q3", "psic-q4")


def what_it_reads(target: Target, root: str | None) -> dict[str, dict[str, float]]:
    """Shares read rightly, on originals and through the plain codec of each shipped rate.

    A set whose data are not there is left out. ImageNet is read with ten of the eighty prompts over all thousand names.

    Returns:
        For each figure, such as ``"flickr8k i2t"``, by version: ``original``, ``psic-q1`` and so on.
    """
    found = [name for name in CODECS if (data_dir() / "checkpoints" / f"{name}.safetensors").is_file()]
    codecs = {name: load_checkpoint(name, plain=True) for name in found}
    result: dict[str, dict[str, float]] = {}
    for name, limit in SETS.items():
        try:
            data = eval_set(name, root, limit)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}")
            continue
        if name == "imagenet":
            numbers = ImageNetFolder(data_root(root) / "imagenet_sample").numbers[:limit]
            data.classes = tuple(dict.fromkeys(IMAGENET_CLASSNAMES))  # two names stand there twice
            data.labels = torch.tensor([data.classes.index(IMAGENET_CLASSNAMES[n]) for n in numbers])
            data.templates = list(OPENAI_IMAGENET_TEMPLATES[::8])
        result |= {f"{name} {task}": by for task, by in scores(target, data, codecs).items()}
    return result


@torch.no_grad()
def scores(target: Target, data: EvalSet, codecs: Mapping[str, PSIC]) -> dict[str, dict[str, float]]:
    """What a target reads of one set: for each task, the share that is right on originals and through each codec."""
    features: dict[str, list[Tensor]] = {name: [] for name in ("original", *codecs)}
    for i in range(data.size):
        x = data.picture(i)[None]
        features["original"].append(target.encode_image(x))
        for name, codec in codecs.items():
            features[name].append(target.encode_image(decoded(codec, x)))
    seen = {name: torch.cat(parts) for name, parts in features.items()}
    correct = task_results(seen | {"plain": seen["original"]}, data, target)
    shares = {
        task: {name: float(by[name].float().mean()) for name in seen}
        for task, (by, _) in correct.items()
        if task in ("t2i", "i2t", "classification")
    }
    if "attributes" in correct:
        right = {name: correct["attributes"][0][name].reshape(data.size, -1) for name in seen}
        shares["attributes, balanced"] = {
            name: float(balanced_accuracy(c == data.attributes, data.attributes).nanmean()) for name, c in right.items()
        }
    return {task: {name: round(value, 4) for name, value in by.items()} for task, by in shares.items()}


def decoded(codec: PSIC, x: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "1 3 height width"]:
    """The plain decoding of a picture of any size, at 8 bits, without writing a file."""
    height, width = x.shape[-2:]
    y_hat = codec.quantised_latents(pad_to(x, codec.factor))
    return round_to_8_bits(codec.synthesize(y_hat)[..., :height, :width])


if __name__ == "__main__":
    name, output, root = sys.argv[1:]
    for figure, by in make_reader(Path(output), name, root, Path("build/cache")).items():
        print(f"{figure:26}" + "".join(f"{version:>12} {100 * value:5.1f}" for version, value in by.items()))
