"""Makes lite-clip and its like in one call, and writes beside the weights what each reads."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import save_file
from torch import Tensor

from psic_core.codec import PSIC
from psic_core.config import data_dir, data_root
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.datasets.folders import Flickr8k, Folder, ImageNetFolder, in_memory
from psic_core.lab.tasks import task_results
from psic_core.metrics import balanced_accuracy
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.lite_clip import LITE_HEADS, lite_clip_towers
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import load_checkpoint, provenance
from psic_core.training.lite_clip_heads import (
    CLASS_PROMPTS,
    HeadConfig,
    TowerFeatures,
    contrastive,
    tower_features,
    train_heads,
)
from psic_core.training.pairs import Pairs
from psic_core.training.phase import load_pairs

RECIPES = {
    "lite-clip": HeadConfig(),
    "lite1-clip": HeadConfig(epochs=26, seed=1),
    "lite2-clip": HeadConfig(captions=(3, 4), seed=2),  # never attacked: shares less of the captions with the others
}
SETS = {"flickr8k": 1000, "coco": 380, "imagenet": 500, "scenes": 500, "celeba": 1000}  # and how many pictures
RATES = ("codec-q1", "codec-q2", "codec-q3", "codec-q4")


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


def what_it_reads(target: Target, root: str | None) -> dict[str, dict[str, float]]:
    """Shares read rightly, on originals and through the plain codec of each shipped rate.

    A set whose data are not there is left out. ImageNet is read with ten of the eighty prompts over all thousand names.

    Returns:
        For each figure, such as ``"flickr8k i2t"``, by version: ``original``, ``codec-q1`` and so on.
    """
    found = [name for name in RATES if (data_dir() / "checkpoints" / f"{name}.safetensors").is_file()]
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
            data.templates = list(CLASS_PROMPTS)
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
