"""The tasks, end to end, to one JSON: fidelity, rate, and what a target makes of each version."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.passes import Reader, Texts, read
from psic_core.lab.tasks import RETRIEVAL, Correct, retrieval, task_results
from psic_core.metrics import Flips, balanced_accuracy, count_flips, flip_rate
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import provenance

RECALLS = (1, 5, 10)
NULLS = ("protected", "full", "jpeg", "noise", "wrong keyword")  # the rows of every ASR table


def evaluate(
    model: PSIC, plain: PSIC, data: EvalSet, targets: Target | Sequence[Target], cache: str | Path | None = None
) -> dict[str, Any]:
    """Measure one checkpoint on one data set.

    Args:
        model: PSIC, with its secret.
        plain: The plain codec of the same rate.
        data: From `psic_core.datasets.eval_sets.eval_set`.
        targets: The model that reads the pictures; further ones, which read the same files, go to ``transfer``.
        cache: Folder that keeps finished passes by content; ``None`` computes anew.

    Returns:
        ``n``, ``bpp``, ``bpp_plain``, ``psnr``, ``change`` (dB of protected against full), ``score[task][version]``,
        ``recall[task][version][k]``, ``asr[task][version]`` with value, 95 % interval and denominator (right on the
        plain codec, the paper's), ``balanced[version]`` where there are attributes, ``flips[task][version]`` as
        `pack_flips` writes them; ``transfer[target]`` with ``score``, ``asr`` and ``flips`` of each further target;
        JSON-ready.
    """
    targets = [targets] if isinstance(targets, Target) else list(targets)
    folder = Path(cache) if cache else None
    readers = [Reader(t.name, t, partial(_encode, t)) for t in targets]
    passes = read(model, plain, data, readers, folder)
    first, (name, *others) = passes[0], [t.name for t in targets]
    texts = {t.name: Texts(t, folder) for t in targets}
    correct = task_results(first.seen, data, texts[name])
    report = {
        "dataset": data.name,
        "target": name,
        "n": data.size,
        "bpp": float(first.bpp.mean()),
        "bpp_plain": float(first.bpp_plain.mean()),
        "psnr": {version: float(values.mean()) for version, values in first.psnr.items()},
        "change": float(first.change.mean()),
        **_successes(correct),
    }
    if data.captions:
        report["recall"] = _recalls(correct, first.seen, data.captions, texts[name])
    if "attributes" in correct:
        right = {v: c.reshape(data.size, -1) for v, c in correct["attributes"][0].items()}
        # an answer is yes where it is right about a yes or wrong about a no
        report["balanced"] = {
            v: float(balanced_accuracy(c == data.attributes, data.attributes).nanmean()) for v, c in right.items()
        }
    if others:
        seen = zip(others, passes[1:], strict=True)
        report["transfer"] = {other: _successes(task_results(p.seen, data, texts[other])) for other, p in seen}
    return report | {"provenance": provenance()}


def write_json(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a report; NaN becomes null, which JSON knows."""
    text = json.dumps(no_nan(report), indent=1, allow_nan=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n", encoding="utf-8")


def no_nan(value: Any) -> Any:
    """The same, with ``None`` for numbers that JSON has not."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def _encode(target: Target, pictures: Tensor) -> Tensor:
    return target.encode_image(pictures.to(target.mean.device))


def _successes(correct: Mapping[str, Correct]) -> dict[str, Any]:
    """Scores, ASR among what is right on the plain codec, and the counts behind it."""
    flips = {
        task: {v: count_flips(by["plain"], by[v], groups) for v in NULLS} for task, (by, groups) in correct.items()
    }
    return {
        "score": {task: {v: float(c.float().mean()) for v, c in by.items()} for task, (by, _) in correct.items()},
        "asr": {task: {v: flip_rate([f])._asdict() for v, f in by.items()} for task, by in flips.items()},
        "flips": {task: {v: pack_flips(f) for v, f in by.items()} for task, by in flips.items()},
    }


def _recalls(
    correct: Mapping[str, Correct], seen: Mapping[str, Tensor], captions: Sequence[tuple[str, ...]], texts: Texts
) -> dict[str, dict[str, dict[str, float]]]:
    """R@k of both directions, where the gallery has k items; ``correct`` has rank 1 already."""
    result: dict[str, Any] = {}
    for k in (k for k in RECALLS if k <= len(captions)):
        found = retrieval(seen, captions, texts, k) if k > 1 else {t: correct[t] for t in RETRIEVAL}
        for task, (by, _) in found.items():
            for version, c in by.items():
                result.setdefault(task, {}).setdefault(version, {})[str(k)] = float(c.float().mean())
    return result


def pack_flips(flips: Flips) -> dict[str, str]:
    """Counts up to 255 a picture as hexadecimal text, two digits a picture."""
    return {name: bytes(counts.to(torch.uint8).tolist()).hex() for name, counts in flips._asdict().items()}


def unpack_flips(packed: Mapping[str, str]) -> Flips:
    """What `pack_flips` wrote."""
    return Flips(**{n: torch.tensor(list(bytes.fromhex(t)), dtype=torch.float64) for n, t in packed.items()})
