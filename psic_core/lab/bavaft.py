"""BAvAFT (Yu et al., CVPR 2023), the rival in the paper's Fig. 3, on our backbone; from its description, anew."""

import time
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.config import TrainConfig
from psic_core.models.delta import dct_basis
from psic_core.models.images import pad_to, round_to_8_bits
from psic_core.models.vlp import Target
from psic_core.objectives import attack_loss, masked_mse, rate_distortion_loss
from psic_core.training.batches import draw, indices
from psic_core.training.pairs import Pairs

BLOCK = 16  # pixels a side of the blocks that are transformed
CANDIDATES = 64  # mid frequencies of the 256 of a block
CHOSEN = 16  # of them carry the trigger
ENCODER_RATE = 0.03  # the encoder's learning rate, as a share of the injection network's


def dct_matrix() -> Float[Tensor, "n n"]:
    """The orthonormal DCT-II of a block: row u holds the cosine of frequency u."""
    return dct_basis(BLOCK, BLOCK).float()


def mid_frequencies() -> list[tuple[int, int]]:
    """The `CANDIDATES` pairs (u, v) in the middle of a block's zigzag order, from low to high."""
    order = sorted(((u, v) for u in range(BLOCK) for v in range(BLOCK)), key=lambda f: (f[0] + f[1], f[0]))
    skip = (BLOCK**2 - CANDIDATES) // 2
    return order[skip : skip + CANDIDATES]


class FrequencyTrigger(nn.Module):
    """BAvAFT's injection network: a picture gets a trigger in the mid frequencies of its block DCT.

    One general trigger for all pictures, an amplitude for each frequency and colour; a small network reads the
    block's own mid frequencies and weighs the trigger block by block; another ranks the frequencies of the whole
    picture, and the best `CHOSEN` carry it (top-K with gates that pass the gradient).
    """

    WIDTH = 64  # channels of both small networks

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("dct", dct_matrix(), persistent=False)
        u, v = zip(*mid_frequencies(), strict=True)
        self.register_buffer("place", torch.tensor([a * BLOCK + b for a, b in zip(u, v, strict=True)]), False)
        self.general = nn.Parameter(0.8 * torch.randn(3 * CANDIDATES))  # pixels are in [0, 1]
        self.weigh = nn.Sequential(
            nn.Conv2d(3 * CANDIDATES, self.WIDTH, 1), nn.ReLU(), nn.Conv2d(self.WIDTH, 3 * CANDIDATES, 1), nn.Softplus()
        )
        self.rank = nn.Sequential(nn.Linear(3 * CANDIDATES, self.WIDTH), nn.ReLU(), nn.Linear(self.WIDTH, CANDIDATES))

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """The poisoned picture, clamped to [0, 1] and rounded to 8 bits; sides need not be multiples of a block."""
        height, width = x.shape[-2:]
        c = self._spectrum(pad_to(x, BLOCK))  # (B, 3, 256, rows, columns)
        mid = c[:, :, self.place].flatten(1, 2)
        scores = self.rank(mid.abs().mean((2, 3)))
        gates = torch.sigmoid(scores)
        last = scores.topk(CHOSEN, dim=1).values[:, -1:]
        gates = (gates * (scores >= last)).repeat(1, 3)[:, :, None, None]
        trigger = self.general[None, :, None, None] * self.weigh(mid) * gates
        added = torch.zeros_like(c)
        added[:, :, self.place] = trigger.unflatten(1, (3, CANDIDATES))
        return round_to_8_bits(x + self._pixels(added)[..., :height, :width])

    def _spectrum(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # B 3 rows BLOCK columns BLOCK
        c = torch.einsum("ui,bcrisj,vj->bcuvrs", self.dct, blocks, self.dct)
        return c.flatten(2, 3)

    def _pixels(self, c: Tensor) -> Tensor:
        c = c.unflatten(2, (BLOCK, BLOCK))
        blocks = torch.einsum("ui,bcuvrs,vj->bcrisj", self.dct, c, self.dct)
        return blocks.flatten(4, 5).flatten(2, 3)


class BAvAFT(nn.Module):
    """A plain codec whose encoder is trained to answer a trigger in its input; the decoder stays the victim's.

    Clean and poisoned pictures are two encodings, two streams. Polarity is the paper's other way round: without the
    trigger the codec behaves.

    Args:
        codec: The plain codec; its encoder (``g_a``, ``h_a``) is trained in place.
    """

    def __init__(self, codec: PSIC) -> None:
        super().__init__()
        if codec.kind != "plain":
            raise ValueError(f"BAvAFT attacks a plain codec; this one is of kind {codec.kind!r}")
        self.codec, self.trigger = codec, FrequencyTrigger()
        codec.requires_grad_(False)
        for encoder in self.encoders():
            encoder.requires_grad_(True)

    def encoders(self) -> Iterator[nn.Module]:
        """What BAvAFT may change of the codec."""
        backbone = self.codec.backbone
        yield from (getattr(backbone, name) for name in ("g_a", "h_a") if hasattr(backbone, name))


def train_bavaft(rival: BAvAFT, pairs: Pairs, config: TrainConfig, target: Target) -> dict[str, float]:
    """Train trigger and encoder together.

    ``L = [lmbda 255^2 MSE(x_hat(x), x) + R(x)] + [lmbda (255^2 mu MSE(x_hat(x_p), x) + gamma L_UC) + R(x_p)]``:
    BAvAFT's joint loss with PSIC's own attack term, so that the two differ in the mechanism alone. Its dynamic
    weighting is left out: gamma is swept instead.

    Args:
        rival: Trained in place.
        pairs: With features.
        config: As PSIC's phase: steps, batch, crop, learning rate (of the injection network; the encoder's is
            `ENCODER_RATE` of it), lmbda, gamma, mu, masking, objective.
        target: The model under attack.

    Returns:
        The last step's ``loss``, ``psnr_clean``, ``psnr_poisoned`` in dB, ``bpp_clean``, ``bpp_poisoned``, ``seconds``.
    """
    encoder, trigger = [p for m in rival.encoders() for p in m.parameters()], list(rival.trigger.parameters())
    optimiser = torch.optim.Adam([{"params": trigger, "scale": 1.0}, {"params": encoder, "scale": ENCODER_RATE}])
    rival.train()
    started, row = time.perf_counter(), {}
    for step in tqdm(range(config.steps), desc="BAvAFT", disable=None, mininterval=1):
        seed = (config.seed * 1_000_003 + step) * 64
        torch.manual_seed(seed)
        rng = torch.Generator().manual_seed(seed)
        batch = draw(pairs, indices(step, len(pairs), config), config, rng, None, torch.device("cpu"))
        loss, row, x_hat = _loss(rival, batch.x, config)
        features = target.encode_image(round_to_8_bits(x_hat))
        attack, seen = attack_loss(features, pairs.pool(batch.index, config.pool, rng), config, rng)
        loss = loss + config.lmbda * config.gamma * attack
        for group in optimiser.param_groups:
            group["lr"] = config.rate_at(step) * group["scale"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trigger + encoder, config.clip_grad)
        optimiser.step()
        row |= seen | {"loss": float(loss.detach())}
    rival.eval()
    return row | {"seconds": time.perf_counter() - started}


def _loss(rival: BAvAFT, x: Tensor, config: TrainConfig) -> tuple[Tensor, dict[str, float], Tensor]:
    """Rate and distortion of both encodings, their figures, and the poisoned picture decoded."""
    height, width = x.shape[-2:]
    total, row = x.new_zeros(()), {}
    for kind, shown, weight in (("clean", x, 1.0), ("poisoned", rival.trigger(x), config.mu)):
        out = rival.codec(pad_to(shown, rival.codec.factor))
        x_hat = out["x_hat"][..., :height, :width]
        rd = rate_distortion_loss(x_hat, x, out["likelihoods"], config.lmbda * weight)
        total = total + rd.loss
        row |= {f"psnr_{kind}": float(-10 * torch.log10(rd.mse.detach())), f"bpp_{kind}": float(rd.bpp.detach())}
    return total + config.lmbda * config.masking * 255**2 * masked_mse(x_hat, x), row, x_hat
