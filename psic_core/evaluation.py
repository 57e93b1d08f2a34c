"""The tasks, end to end, to one JSON: fidelity, rate, and what a target makes of each version."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from tqdm import tqdm

from psic_core.checkpoints import provenance
from psic_core.codec import PSIC
from psic_core.config import data_root
from psic_core.datasets.folders import CelebA, Flickr8k, Folder, ImageNetFolder
from psic_core.datasets.scenes import Scenes
from psic_core.evidence import caption_ids
from psic_core.metrics import Flips, correct_at_k, count_flips, flip_rate, psnr
from psic_core.targets import Target
from psic_core.versions import VERSIONS, code_versions

DATASETS = ("scenes", "flickr8k", "flickr8k-dev", "celeba", "imagenet", "kodak", "photos")
NULLS = ("protected", "full", "jpeg", "noise", "wrong_key")  # the rows of every ASR table
PHOTO_CLASSES = (
    "person",
    "child",
    "dog",
    "cat",
    "bird",
    "horse",
    "car",
    "boat",
    "airplane",
    "food",
    "cup of coffee",
    "flower",
    "tree",
    "building",
    "street",
    "beach",
    "mountain",
    "rocket",
    "astronaut",
    "motorcycle",
)


@dataclass
class EvalSet:
    """Pictures and whatever is known of them; a task runs where its part is there."""

    name: str
    size: int
    picture: Callable[[int], Float[Tensor, "3 height width"]]
    captions: list[tuple[str, ...]] | None = None
    classes: tuple[str, ...] | None = None
    labels: Int64[Tensor, " n"] | None = None
    templates: list[Callable[[str], str]] = field(default_factory=lambda: [lambda c: f"a photo of a {c}"])
    attribute_prompts: tuple[tuple[str, str], ...] | None = None
    attributes: Bool[Tensor, "n a"] | None = None


def eval_set(
    name: str,
    root: str | Path | None = None,
    limit: int | None = None,
    size: int = 160,
    classes: Sequence[str] | None = None,
) -> EvalSet:
    """A data set by name.

    Args:
        name: One of `DATASETS`. ``scenes`` is embedded (500 held-out pictures); the others live in the data
            root, and ``photos`` is any folder of pictures given as ``root``. ``flickr8k`` is its test split.
        root: The data root, or the folder of ``photos``.
        limit: At most so many pictures, the first ones.
        size: Side in pixels of the squares that pictures are made into; ``kodak`` and ``photos`` stay as they are.
        classes: What the model may call one of ``photos``; default `PHOTO_CLASSES`. The other sets have their own.

    Raises:
        ValueError: Unknown name, a limit below 1, classes that do not fit.
        FileNotFoundError: The data is not there.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit} leaves no picture; give at least 1")
    if classes is not None and (name != "photos" or len(set(classes)) < 2):
        raise ValueError(f"{len(set(classes))} classes for {name!r}: give at least two, and only for photos")
    if name == "scenes":
        return _scenes(limit or 500, size)
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    if name == "photos":
        photos = Folder(data_root(root))
        return EvalSet(name, _least(limit, len(photos)), photos.__getitem__, classes=tuple(classes or PHOTO_CLASSES))
    base = data_root(root)
    if name == "kodak":  # fidelity alone: nothing is known of its pictures
        kodak = Folder(base / name)
        return EvalSet(name, _least(limit, len(kodak)), kodak.__getitem__)
    if name.startswith("flickr8k"):
        flickr = Flickr8k(base / "flickr8k", "dev" if name.endswith("dev") else "test", size)
        n = _least(limit, len(flickr))
        return EvalSet(name, n, flickr.__getitem__, captions=list(flickr.captions[:n]))
    if name == "celeba":
        return _celeba(CelebA(base / name, size), limit)
    imagenet = ImageNetFolder(base / "imagenet_sample", size)
    n = _least(limit, len(imagenet))
    return EvalSet(name, n, imagenet.__getitem__, classes=imagenet.classes, labels=imagenet.labels[:n],
                   templates=list(OPENAI_IMAGENET_TEMPLATES))  # fmt: skip


def evaluate(model: PSIC, plain: PSIC, data: EvalSet, target: Target) -> dict[str, Any]:
    """Measure one checkpoint on one data set.

    Args:
        model: PSIC, with its secret.
        plain: The plain codec of the same rate.
        data: From `eval_set`.
        target: The model that reads the pictures.

    Returns:
        ``n``, ``bpp``, ``bpp_backbone``, ``psnr``, ``score[task][version]``, ``asr[task][version]`` with value, 95 %
        interval and denominator, ``flips[task][version]`` as `pack_flips` writes them; JSON-ready.
    """
    model.full_condition()
    features: dict[str, list[Tensor]] = {v: [] for v in VERSIONS}
    fidelity: dict[str, list[float]] = {v: [] for v in VERSIONS if v != "original"}
    rates: dict[str, list[float]] = {"bpp": [], "bpp_backbone": []}
    for i in tqdm(range(data.size), desc=f"{data.name} on {target.name}", mininterval=2):
        x = data.picture(i)[None]
        coded = code_versions(model, plain, x, model.secret, seed=i)
        seen = _read(target, coded.pictures)
        for version, picture in coded.pictures.items():
            features[version].append(seen[version])
            if version != "original":
                fidelity[version].append(min(psnr(picture, x), 100.0))
        pixels = x.shape[-1] * x.shape[-2]
        rates["bpp"].append(8 * coded.psic_bytes / pixels)
        rates["bpp_backbone"].append(8 * coded.backbone_bytes / pixels)
    correct = task_results({v: torch.stack(f) for v, f in features.items()}, data, target)
    flips = {
        task: {v: count_flips(by["backbone"], by[v], groups) for v in NULLS} for task, (by, groups) in correct.items()
    }
    return {
        "dataset": data.name,
        "target": target.name,
        "n": data.size,
        **{name: fmean(values) for name, values in rates.items()},
        "psnr": {version: fmean(values) for version, values in fidelity.items()},
        "score": {task: {v: float(c.float().mean()) for v, c in by.items()} for task, (by, _) in correct.items()},
        "asr": {task: {v: flip_rate([f])._asdict() for v, f in by.items()} for task, by in flips.items()},
        "flips": {task: {v: pack_flips(f) for v, f in by.items()} for task, by in flips.items()},
        "provenance": provenance(),
    }


Correct = tuple[dict[str, Bool[Tensor, " samples"]], Int64[Tensor, " samples"]]


def task_results(features: Mapping[str, Float[Tensor, "n d"]], data: EvalSet, target: Target) -> dict[str, Correct]:
    """For each task that the data allow: which samples each version gets right, and the picture of each sample."""
    results: dict[str, Correct] = {}
    if data.captions:
        results |= retrieval(features, data.captions, target)
    if data.classes:
        weights = class_weights(target, data.classes, data.templates)
        labels = data.labels
        if labels is None:  # no truth: agreement with the model's own reading of the original
            labels = (features["original"] @ weights.T).argmax(1)
        by = {v: (f @ weights.T).argmax(1) == labels for v, f in features.items()}
        results["classification"] = (by, torch.arange(data.size))
    if data.attribute_prompts:
        flat = target.encode_text([p for pair in data.attribute_prompts for p in pair]).cpu()
        yes, no = flat[0::2], flat[1::2]
        by = {v: ((f @ yes.T > f @ no.T) == data.attributes).flatten() for v, f in features.items()}
        groups = torch.arange(data.size).repeat_interleave(len(yes))
        results["attributes"] = (by, groups)
    return results


def retrieval(
    features: Mapping[str, Float[Tensor, "n d"]], captions: list[tuple[str, ...]], target: Target
) -> dict[str, Correct]:
    """R@1 in both directions. Pictures that share a caption are all right answers for it.

    ``t2i`` searches a gallery where every picture has the version (the paper's protocol), ``t2i_single`` one
    where only the searched picture has it, among plain ones.
    """
    flat = [c for row in captions for c in row]
    owner = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(row) for row in captions]))
    text = target.encode_text(flat).cpu()
    ids = caption_ids(flat)
    positives = torch.zeros(len(captions), int(ids.max()) + 1, dtype=torch.bool)
    positives[owner, ids] = True
    positives = positives[:, ids]
    scores = {v: f @ text.T for v, f in features.items()}
    own = torch.arange(len(captions))[:, None] == owner[None, :]
    i2t = {v: correct_at_k(s, positives) for v, s in scores.items()}
    t2i = {v: correct_at_k(s.T, positives.T) for v, s in scores.items()}
    others = scores["backbone"].masked_fill(positives, -torch.inf)  # a twin is neither right nor wrong
    single = {v: correct_at_k(torch.where(own, s, others).T, own.T) for v, s in scores.items()}
    rows = torch.arange(len(captions))
    return {"t2i": (t2i, owner), "i2t": (i2t, rows), "t2i_single": (single, owner)}


def class_weights(
    target: Target, classes: tuple[str, ...], templates: list[Callable[[str], str]]
) -> Float[Tensor, "classes d"]:
    """Zero-shot classifier: the mean unit text feature of each class over the templates (Radford et al. 2021)."""
    texts = target.encode_text([t(c) for c in classes for t in templates]).cpu()
    mean = texts.reshape(len(classes), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(mean, dim=1)


def table(report: Mapping[str, Any]) -> str:
    """A report as plain text: fidelity, then ASR with intervals, versions in columns."""
    lines = [
        f"{report['dataset']}: {report['n']} pictures, target {report['target']}, {report['bpp']:.3f} bpp"
        f" (plain codec {report['bpp_backbone']:.3f})",
        "PSNR dB   " + "  ".join(f"{v} {p:.2f}" for v, p in report["psnr"].items()),
    ]
    for task, scores in report["score"].items():
        shown = "  ".join(f"{v} {100 * scores[v]:.1f}" for v in ("original", "backbone", "full", "protected"))
        lines.append(f"{task:15} score %  {shown}")
        for version, e in report["asr"][task].items():
            low, high = e["ci95"]
            value = f"{100 * e['value']:5.1f} [{100 * low:5.1f}, {100 * high:5.1f}]"
            lines.append(f"{'':15} ASR %    {version:10} {value}  of {e['n']}")
    return "\n".join(lines)


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report; NaN becomes null, which JSON knows."""
    text = json.dumps(_no_nan(report), indent=1, allow_nan=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _no_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@torch.no_grad()
def _read(target: Target, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    batch = torch.cat([pictures[v] for v in VERSIONS]).to(target.mean.device)
    return dict(zip(VERSIONS, target.encode_image(batch).cpu(), strict=True))


def pack_flips(flips: Flips) -> dict[str, str]:
    """Counts up to 255 a picture as hexadecimal text, two digits a picture."""
    return {name: bytes(counts.to(torch.uint8).tolist()).hex() for name, counts in flips._asdict().items()}


def unpack_flips(packed: Mapping[str, str]) -> Flips:
    """What `pack_flips` wrote."""
    return Flips(**{n: torch.tensor(list(bytes.fromhex(t)), dtype=torch.float64) for n, t in packed.items()})


def _scenes(n: int, size: int) -> EvalSet:
    scenes = Scenes("test", n, size)
    drawn = [scenes[i] for i in range(n)]
    return EvalSet(
        "scenes", n, lambda i: drawn[i].image, [s.captions for s in drawn], scenes.classes,
        torch.tensor([s.class_index for s in drawn]), attribute_prompts=scenes.attribute_prompts,
        attributes=torch.stack([s.attributes for s in drawn]),
    )  # fmt: skip


def _celeba(faces: CelebA, limit: int | None) -> EvalSet:
    n = _least(limit, len(faces))
    names = [a.replace("_", " ").lower() for a in faces.attributes]
    prompts = tuple((f"a photo of a face, {a}", f"a photo of a face, not {a}") for a in names)
    return EvalSet("celeba", n, faces.__getitem__, attribute_prompts=prompts, attributes=faces.labels[:n])


def _least(limit: int | None, n: int) -> int:
    return n if limit is None else min(limit, n)
