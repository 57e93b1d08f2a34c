"""What wrong keywords decode: many of them, one by one, beside no keyword and the right one."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from psic_core import bitstream, keys
from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.tasks import task_results
from psic_core.metrics import attack_success_rate, psnr
from psic_core.models.images import round_to_8_bits
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import provenance


@torch.no_grad()
def audit(model: PSIC, data: EvalSet, target: Target, keywords: int = 100) -> dict[str, Any]:
    """Decode every picture with each of many wrong keywords.

    The plain codec here is the model without its triggers, as `psic publish` writes it.

    Args:
        model: An anchored PSIC with its secret.
        data: From `psic_core.datasets.eval_sets.eval_set`.
        target: The model that reads the pictures.
        keywords: How many.

    Returns:
        ``psnr`` in dB of the full and protected versions and a list over keywords; ``gain``, full minus protected, and
        ``reached``, the largest share of it that a wrong keyword gives; ``asr[task]`` likewise; JSON-ready.

    Raises:
        ValueError: The model is not anchored; a keyword happens to be its passphrase.
    """
    if not model.config.anchored:
        raise ValueError("the audit takes the model without triggers as plain codec: it needs an anchored model")
    secrets = [keys.secret(f"wrong keyword {i}") for i in range(keywords)]
    if model.secret in secrets:
        raise ValueError("a keyword of the audit is this model's passphrase; re-key the model")
    wrong = [keys.condition(s, model.config.dim) for s in secrets]
    conditions = torch.stack([torch.zeros(model.config.dim), *wrong])
    names = ("original", "plain", "protected", *(f"key {i}" for i in range(keywords)))
    features: dict[str, list[torch.Tensor]] = {n: [] for n in names}
    fidelity: dict[str, list[float]] = {n: [] for n in names[1:]}
    for i in tqdm(range(data.size), desc=f"{keywords} wrong keywords", mininterval=2):
        x = data.picture(i)[None]
        stream = bitstream.unpack(model.compress(x))
        y_hat = model.latents(stream)
        decoded = [model.picture(y_hat, stream.size, c) for c in (model.full_condition(), *conditions)]
        pictures = round_to_8_bits(torch.cat(decoded))
        seen = target.encode_images(torch.cat([x, pictures])).cpu()
        for name, feature in zip(names, seen, strict=True):
            features[name].append(feature)
        for name, picture in zip(names[1:], pictures, strict=True):
            fidelity[name].append(min(psnr(picture, x[0]), 100.0))
    means = {n: fmean(v) for n, v in fidelity.items()}
    gain, by_key = means["plain"] - means["protected"], [means[n] for n in names[3:]]
    correct = task_results({n: torch.stack(f) for n, f in features.items()}, data, target)
    return {
        "dataset": data.name,
        "target": target.name,
        "n": data.size,
        "keywords": keywords,
        "psnr": {"full": means["plain"], "protected": means["protected"], "keys": by_key},
        "gain": gain,
        "reached": (max(by_key) - means["protected"]) / gain if gain > 0 else None,
        "asr": {task: _rates(by, groups, names[3:]) for task, (by, groups) in correct.items()},
        "provenance": provenance(),
    }


def table(report: Mapping[str, Any]) -> str:
    """A report as plain text."""
    p = report["psnr"]
    reached = "–" if report["reached"] is None else f"{100 * report['reached']:.0f} %"
    lines = [
        f"{report['dataset']}: {report['n']} pictures, {report['keywords']} wrong keywords, target {report['target']}",
        f"PSNR dB    full {p['full']:.2f}  protected {p['protected']:.2f}  wrong {min(p['keys']):.2f} to"
        f" {max(p['keys']):.2f}: at most {reached} of what the right keyword gains",
    ]
    for task, rates in report["asr"].items():
        k = [100 * v for v in rates["keys"]]
        lines.append(
            f"{task:15} ASR %  none {100 * rates['protected']:.1f}  wrong: mean {fmean(k):.1f},"
            f" {min(k):.1f} to {max(k):.1f}  of {rates['n']}"
        )
    return "\n".join(lines)


def _rates(by: Mapping[str, torch.Tensor], groups: torch.Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    none = attack_success_rate(by["plain"], by["protected"], groups)
    wrong = [attack_success_rate(by["plain"], by[n], groups, resamples=1).value for n in names]
    return {"protected": none.value, "n": none.n, "keys": wrong}
