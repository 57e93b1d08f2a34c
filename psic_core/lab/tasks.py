"""The tasks on features: retrieval, zero-shot classification, attributes; which samples each version gets right."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from psic_core.datasets.eval_sets import EvalSet
from psic_core.evidence import caption_ids
from psic_core.lab.passes import Texts
from psic_core.metrics import correct_at_k
from psic_core.models.vlp import Target

TASKS = ("t2i", "i2t", "classification", "attributes")  # the paper's four
RETRIEVAL = ("t2i", "i2t", "t2i_single")  # what `retrieval` gives

Correct = tuple[dict[str, Bool[Tensor, " samples"]], Int64[Tensor, " samples"]]


def task_results(
    features: Mapping[str, Float[Tensor, "n d"]], data: EvalSet, texts: Target | Texts
) -> dict[str, Correct]:
    """For each task that the data allow: which samples each version gets right, and the picture of each sample."""
    results: dict[str, Correct] = {}
    if data.captions:
        results |= retrieval(features, data.captions, texts)
    if data.classes:
        weights = class_weights(texts, data.classes, data.templates)
        labels = data.labels
        if labels is None:  # no truth: agreement with the model's own reading of the original
            labels = (features["original"] @ weights.T).argmax(1)
        by = {v: (f @ weights.T).argmax(1) == labels for v, f in features.items()}
        results["classification"] = (by, torch.arange(data.size))
    if data.attribute_prompts:
        flat = texts.encode_text([p for pair in data.attribute_prompts for p in pair]).cpu()
        yes, no = flat[0::2], flat[1::2]
        by = {v: ((f @ yes.T > f @ no.T) == data.attributes).flatten() for v, f in features.items()}
        groups = torch.arange(data.size).repeat_interleave(len(yes))
        results["attributes"] = (by, groups)
    return results


def retrieval(
    features: Mapping[str, Float[Tensor, "n d"]], captions: Sequence[tuple[str, ...]], texts: Target | Texts, k: int = 1
) -> dict[str, Correct]:
    """R@k in both directions. Pictures that share a caption are all right answers for it.

    ``t2i`` searches a gallery where every picture has the version (the paper's protocol), ``t2i_single`` one
    where only the searched picture has it, among plain ones.
    """
    flat = [c for row in captions for c in row]
    owner = torch.arange(len(captions)).repeat_interleave(torch.tensor([len(row) for row in captions]))
    text = texts.encode_text(flat).cpu()
    ids = caption_ids(flat)
    positives = torch.zeros(len(captions), int(ids.max()) + 1, dtype=torch.bool)
    positives[owner, ids] = True
    positives = positives[:, ids]
    scores = {v: f @ text.T for v, f in features.items()}
    own = torch.arange(len(captions))[:, None] == owner[None, :]
    i2t = {v: correct_at_k(s, positives, k) for v, s in scores.items()}
    t2i = {v: correct_at_k(s.T, positives.T, k) for v, s in scores.items()}
    others = scores["plain"].masked_fill(positives, -torch.inf)  # a twin is neither right nor wrong
    single = {v: correct_at_k(torch.where(own, s, others).T, own.T, k) for v, s in scores.items()}
    rows = torch.arange(len(captions))
    return {"t2i": (t2i, owner), "i2t": (i2t, rows), "t2i_single": (single, owner)}


def class_weights(
    encoder: Target | Texts, classes: tuple[str, ...], templates: list[Callable[[str], str]]
) -> Float[Tensor, "classes d"]:
    """Zero-shot classifier: the mean unit text feature of each class over the templates (Radford et al. 2021)."""
    texts = encoder.encode_text([t(c) for c in classes for t in templates]).cpu()
    mean = texts.reshape(len(classes), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(mean, dim=1)
