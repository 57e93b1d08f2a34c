"""The bench on which methods and attacks are compared: the same held-out pictures, codec and target for all.

``data/measure/ablate.py`` compares methods on it, ``data/measure/limits.py`` the attacks of the threat model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.passes import Texts
from psic_core.lab.processing import Processing
from psic_core.lab.tasks import TASKS, task_results
from psic_core.lab.versions import jpeg_at
from psic_core.metrics import count_flips, flip_rate, psnr
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Target

LEVELS = {
    "none": "nobody attacks",
    "unseen": "a scraper with another model",
    "platforms": "a platform, a screen, a habit",
    "denoisers": "someone who wants the shield gone and has tools against noise",
    "rival": "someone who knows the method and has the codec",
    "stream": "someone with file and decoder, without a key",
}
BATCH = 20  # pictures decoded together
PLAIN = "plain"  # the version that nulls are measured on, as `tasks` calls the plain codec's

Pictures = Float[Tensor, "n 3 height width"]


class Bench:
    """Held-out pictures, what the plain codec makes of them, and what the target reads there.

    Args:
        plain: The codec that every method starts from; the reference of every attack success rate.
        data: Pictures of one size.
        target: The model under attack.
    """

    @torch.no_grad()
    def __init__(self, plain: PSIC, data: EvalSet, target: Target) -> None:
        self.plain, self.data, self.target = plain.eval(), data, target
        self.texts = Texts(target)
        self.x = torch.stack([data.picture(i) for i in range(data.size)])
        self.y_hat = self.latents(plain)
        self.decoded = self.decode(plain, self.y_hat)  # of the plain codec, 8 bits
        self.read = target.encode_images(self.decoded).cpu()  # the reference of every rate

    @torch.no_grad()
    def latents(self, model: PSIC, pictures: Pictures | None = None) -> Float[Tensor, "n m h w"]:
        """Rounded latents as a decoder gets them from a file, of the bench's pictures or of others."""
        chunks = (self.x if pictures is None else pictures).split(BATCH)
        return torch.cat([model.quantised_latents(pad_to(x, model.factor)) for x in chunks])

    @torch.no_grad()
    def decode(
        self,
        model: PSIC,
        y_hat: Float[Tensor, "n m h w"],
        full: bool = False,
        condition: Float[Tensor, " dim"] | None = None,
    ) -> Pictures:
        """Pictures at 8 bits, as `PSIC.decompress` writes them: protected, full, or under some other condition."""
        size = tuple(self.x.shape[-2:])
        condition = model.full_condition() if full else condition
        decoded = (model.eval().picture(y, size, condition) for y in y_hat.split(BATCH))
        return torch.cat([round_to_8_bits(x_hat) for x_hat in decoded])


class Robustness:
    """A bench with the protected pictures of several models, and the rows of what was done to them.

    The rate of an attack counts, of what the reader gets right on the plain codec's untouched picture, what it gets
    wrong after the attack: on the protected picture (``asr``), and on the plain codec's (``null``), which the same
    attack spoils as well. An attack wins where ``asr`` comes down to ``null``.

    Args:
        models: PSIC by name, over the plain codec's encoder: their files are the same.
        plain: The plain codec.
        data: Pictures of one size.
        target: The reader that the shields were made for.

    Raises:
        ValueError: A model has another encoder than the plain codec.
    """

    def __init__(self, models: Mapping[str, PSIC], plain: PSIC, data: EvalSet, target: Target) -> None:
        for name, model in models.items():
            if model.fingerprint() != plain.fingerprint():
                raise ValueError(f"{name} has another encoder than the plain codec; name the pair of one rate")
        self.models, self.bench = dict(models), Bench(plain, data, target)
        self.shown = {PLAIN: self.bench.decoded}
        self.shown |= {name: self.bench.decode(m, self.bench.y_hat) for name, m in models.items()}
        self.rows: list[dict[str, Any]] = []

    def nothing(self) -> None:
        """No attack: what the shields do to the reader that they were made for."""
        self.add("none", "as published", self.shown | {PLAIN: self.jpeg()})

    def process(self, level: str, processings: Mapping[str, Processing]) -> None:
        """Each processing, of every version."""
        for name, processing in tqdm(processings.items(), level, leave=False, disable=None):
            changed = {v: torch.cat([processing(x) for x in p.split(1)]) for v, p in self.shown.items()}
            self.add(level, name, changed)

    @torch.no_grad()
    def add(
        self, level: str, attack: str, changed: Mapping[str, Pictures], reader: Target | None = None,
        before: Tensor | None = None, **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Measure one attack and keep its row.

        Args:
            level: Of the threat model.
            attack: What tables call it.
            changed: By version, `PLAIN` among them: what the reader gets, at 8 bits, of any one size.
            reader: Who reads after the attack; the bench's own target where ``None``.
            before: What the reader makes of the plain codec's pictures, where it is its own reference.
            more: Further fields of the row.

        Returns:
            The row, JSON-ready: ``asr[model][task]`` and ``null[task]`` as `metrics.Estimate`, ``mean`` among the
            tasks; ``psnr[version]`` in dB to the originals, where the size is still theirs.
        """
        bench, texts = self.bench, Texts(reader) if reader else self.bench.texts
        first = task_results({PLAIN: bench.read if before is None else before}, bench.data,
                             bench.texts if before is None else texts)  # fmt: skip
        seen = {v: (reader or bench.target).encode_images(pictures).cpu() for v, pictures in changed.items()}
        correct = task_results(seen, bench.data, texts)
        rates = {}
        for version in changed:
            flips = {
                task: count_flips(first[task][0][PLAIN], correct[task][0][version], groups=correct[task][1])
                for task in TASKS
                if task in correct
            }
            rates[version] = {task: flip_rate([f])._asdict() for task, f in flips.items()}
            rates[version]["mean"] = flip_rate(list(flips.values()))._asdict()
        row = {"level": level, "attack": attack, "asr": {v: r for v, r in rates.items() if v != PLAIN}}
        row |= {"null": rates[PLAIN], "psnr": self._psnr(changed), **more}
        self.rows.append(row)
        return row

    def _psnr(self, changed: Mapping[str, Pictures]) -> dict[str, float]:
        x = self.bench.x
        return {v: sum(map(psnr, p, x)) / len(x) for v, p in changed.items() if p.shape == x.shape}

    def jpeg(self) -> Pictures:
        """The photos as JPEG at the first model's PSNR: the null where nothing else is done."""
        first = self.shown[next(iter(self.models))]
        pairs = zip(self.bench.x.split(1), first.split(1), strict=True)
        return torch.cat([jpeg_at(x, psnr(protected, x)) for x, protected in pairs])
