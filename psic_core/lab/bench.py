"""The bench on which methods and attacks are compared: the same held-out pictures, codec and target for all."""

import torch
from jaxtyping import Float
from torch import Tensor

from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.passes import Texts
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Target

TASKS = ("t2i", "i2t", "classification", "attributes")  # the paper's four
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
