"""The bench on which methods and attacks are compared: the same held-out pictures, codec and target for all."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.passes import Texts
from psic_core.lab.tasks import task_results
from psic_core.metrics import attack_success_rate, bits_per_pixel, psnr
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Target

TASKS = ("t2i", "i2t", "classification", "attributes")  # the paper's four
FILES = 100  # pictures whose real files are weighed
TIMED = 5  # pictures that are timed
BATCH = 20  # pictures decoded together

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

    def measure(self, protected: Pictures, full: Pictures | None = None) -> dict[str, Any]:
        """Fidelity and attack success of one method.

        Args:
            protected: At 8 bits.
            full: Likewise; ``None``: the plain codec's own, so that the null is 0.

        Returns:
            ``n``; ``psnr`` of plain, full and protected in dB (mean over pictures, against the originals);
            ``asr[task]`` of the protected version and ``null[task]`` of the full one, as `metrics.Estimate`.
            JSON-ready.
        """
        shown = {"plain": self.decoded, "full": self.decoded if full is None else full, "protected": protected}
        seen = {"plain": self.read, "full": self.read, "protected": self.target.encode_images(protected).cpu()}
        if full is not None:
            seen["full"] = self.target.encode_images(full).cpu()
        report: dict[str, Any] = {"n": self.data.size, "asr": {}, "null": {}}
        report["psnr"] = {v: sum(map(psnr, pictures, self.x)) / self.data.size for v, pictures in shown.items()}
        for task, (by, groups) in task_results(seen, self.data, self.texts).items():
            if task in TASKS:
                rate = partial(attack_success_rate, by["plain"], groups=groups)
                report["asr"][task] = rate(by["protected"])._asdict()
                report["null"][task] = rate(by["full"])._asdict()
        return report

    def bpp(self, model: PSIC, pictures: Pictures | None = None) -> float:
        """Bits per pixel of real files, mean over the first `FILES` pictures."""
        shown = (self.x if pictures is None else pictures)[:FILES]
        return sum(bits_per_pixel(model.compress(x), *x.shape[-2:]) for x in shown) / len(shown)

    def seconds_per_megapixel(self, protect: Callable[[Pictures], object]) -> float:
        """Processor time of ``protect`` on one picture after the other, for each megapixel.

        Args:
            protect: Takes one picture ``(1, 3, H, W)`` through everything that its protection costs.
        """
        shown = self.x[: TIMED + 1].split(1)
        protect(shown[0])  # tables, threads and caches
        started = time.process_time()
        for x in shown[1:]:
            protect(x)
        pixels = sum(x.shape[-1] * x.shape[-2] for x in shown[1:])
        return (time.process_time() - started) / pixels * 1e6
