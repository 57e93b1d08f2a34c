"""What a reader reads: originals, and pictures through the plain codec of each shipped rate."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from psic_core.codec import PSIC
from psic_core.config import data_dir, data_root
from psic_core.datasets.eval_sets import EvalSet, eval_set
from psic_core.datasets.folders import ImageNetFolder
from psic_core.lab.tasks import task_results
from psic_core.metrics import balanced_accuracy
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import load_checkpoint

SETS = {"flickr8k": 1000, "coco": 380, "imagenet": 500, "scenes": 500, "celeba": 1000}  # and how many pictures
CODECS = ("codec-q1", "codec-q2", "codec-q3", "codec-q4")


def what_it_reads(target: Target, root: str | None) -> dict[str, dict[str, float]]:
    """Shares read rightly, on originals and through the plain codec of each shipped rate.

    A set whose data are not there is left out. ImageNet is read with ten of the eighty prompts over all thousand names.

    Returns:
        For each figure, such as ``"flickr8k i2t"``, by version: ``original``, ``codec-q1`` and so on.
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
