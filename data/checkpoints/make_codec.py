"""Trains CompressAI's ScaleHyperprior on photographs at four rates, on one GPU, in a given time.

``python data/checkpoints/make_codec.py PHOTOS OUT --init psic-q3 --minutes 12`` goes on from a shipped codec (random
weights without ``--init``) and writes ``OUT/codec-q1..4.safetensors``: a trunk at the third rate, then a decay at each.
``psic recipe codec`` does the same in the trainer's own loop, with states to resume from. Here a step of 32 crops of
256 pixels takes 11 ms of an H200 instead of 24, because it is one CUDA graph: the photos lie in the GPU's memory, and
cropping, networks and optimisers are in the graph.

Matrices learn by Muon (Jordan et al., 2024; scale of Liu et al., 2025), all else by Adam. The decoder sees rounded
latents (straight-through), the entropy model noisy ones (Minnen and Singh, 2020).
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from compressai.entropy_models import EntropyModel
from compressai.layers import GDN
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from psic_core.codec import PSIC
from psic_core.config import RATES, CodecConfig
from psic_core.datasets.photos import Photos
from psic_core.models.images import load_image
from psic_core.training.checkpoints import load_checkpoint, provenance, save_checkpoint

CROP, BATCH, RATE = 256, 32, 5e-4  # pixels, crops, learning rate
SCALES = (1.0, 0.8, 0.64, 0.5)
SPANS = {3: 0.15, 1: 0.13, 2: 0.13, 4: 0.17}  # share of the time for each rate's decay; the trunk has the rest


class Crops:
    """Photos at four scales as one buffer of bytes; a batch of crops is one gather, which a graph can hold."""

    def __init__(self, files: Sequence[Path], device: torch.device, seed: int = 1) -> None:
        self.rng, parts, at = np.random.default_rng(seed), [], 0
        self.photos: list[list[tuple[int, int, int]]] = []  # of each scale of each photo: offset, height, width
        for file in files:
            pixels = torch.from_numpy(np.array(load_image(file))).permute(2, 0, 1)[None].to(device).float()
            self.photos.append([])
            for size in ([round(n * s) for n in pixels.shape[-2:]] for s in SCALES):
                if min(size) >= CROP:
                    x = functional.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
                    parts.append(x.clamp(0, 255).round().byte().flatten())
                    self.photos[-1].append((at, *size))
                    at += parts[-1].numel()
        self.photos = [rows for rows in self.photos if rows]
        self.bytes = torch.cat(parts)
        i = torch.arange(CROP, device=device)
        self.row, self.column, self.channel = i[:, None], i, torch.arange(3, device=device)[:, None, None]
        self.where = torch.zeros(BATCH, 4, dtype=torch.int64, device=device)

    def draw(self) -> None:
        """Choose the next batch: offset, width, pixels of a channel, mirrored or not."""
        where = []
        for k in self.rng.integers(len(self.photos), size=BATCH):
            at, height, width = self.photos[k][self.rng.integers(len(self.photos[k]))]
            top, left = self.rng.integers(height - CROP + 1), self.rng.integers(width - CROP + 1)
            where.append((at + top * width + left, width, height * width, self.rng.integers(2)))
        self.where.copy_(torch.tensor(where), non_blocking=True)

    def gather(self) -> Float[Tensor, "batch 3 crop crop"]:
        """The crops that were drawn last, in [0, 1]."""
        start, width, area, mirrored = self.where.T[..., None, None, None]
        column = torch.where(mirrored == 1, CROP - 1 - self.column, self.column)
        x = self.bytes[start + self.channel * area + self.row * width + column]
        return x.float().contiguous(memory_format=torch.channels_last) / 255


class Division(torch.autograd.Function):
    """GDN's arithmetic in the precision of its input; CompressAI's is float32 under autocast, and waits for memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, inverse: bool) -> Tensor:
        """``x`` is (pixels, channels)."""
        norm = torch.addmm(beta, square(x), gamma.T)
        ctx.save_for_backward(x, gamma, norm)
        ctx.inverse = inverse
        return divided(x, norm, inverse)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Of all but ``inverse``."""
        x, gamma, norm = ctx.saved_tensors
        d = norm_gradient(g.contiguous(), x, norm, ctx.inverse)
        dx = input_gradient(g.contiguous(), x, norm, d @ gamma, ctx.inverse)
        return dx, d.T @ square(x), d.sum(0), None


def square(x: Tensor) -> Tensor:
    """Of each value."""
    return x * x


def divided(x: Tensor, norm: Tensor, inverse: bool) -> Tensor:
    """GDN's output."""
    return x * (norm.sqrt() if inverse else norm.rsqrt())


def norm_gradient(g: Tensor, x: Tensor, norm: Tensor, inverse: bool) -> Tensor:
    """Of the loss with respect to ``norm``."""
    r = norm.float().rsqrt()
    return (g.float() * x.float() * (0.5 * r if inverse else -0.5 * r * r * r)).to(g.dtype)


def input_gradient(g: Tensor, x: Tensor, norm: Tensor, squares: Tensor, inverse: bool) -> Tensor:
    """Of the loss with respect to ``x``; ``squares`` is that with respect to its squares."""
    scale = norm.float().sqrt() if inverse else norm.float().rsqrt()
    return (g.float() * scale + 2 * x.float() * squares.float()).to(g.dtype)


def gdn(self: GDN, x: Float[Tensor, "batch n height width"]) -> Float[Tensor, "batch n height width"]:
    """`GDN.forward` by `Division`."""
    gamma, beta = self.gamma_reparam(self.gamma), self.beta_reparam(self.beta)
    with torch.autocast(x.device.type, enabled=False):
        flat = x.permute(0, 2, 3, 1).flatten(0, 2)
        y = Division.apply(flat, gamma.to(x.dtype), beta.to(x.dtype), bool(self.inverse))
    return y.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)


class Muon:
    """Orthogonalised momentum for the matrices of convolutions; it never waits for the GPU, so a graph can hold it."""

    def __init__(self, parameters: list[nn.Parameter], rate: Tensor, momentum: float = 0.95) -> None:
        self.parameters, self.rate, self.momentum = parameters, rate, momentum
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One step down the gradients."""
        for p, v in zip(self.parameters, self.buffers, strict=True):
            v.lerp_(p.grad, 1 - self.momentum)
            g = p.grad.lerp(v, self.momentum).flatten(1)
            wide = g.shape[0] <= g.shape[1]
            o = (g if wide else g.T).bfloat16()
            o = o / (o.norm() + 1e-12)
            for _ in range(5):
                s = o @ o.T
                o = 3.4445 * o + (-4.7750 * s + 2.0315 * s @ s) @ o
            p.sub_((o if wide else o.T).float().view_as(p) * self.rate * 0.2 * max(g.shape) ** 0.5)


class Run:
    """A plain codec and its optimisers; a step is one graph."""

    def __init__(self, model: PSIC, crops: Crops) -> None:
        self.model, self.crops, device = model.train(), crops, crops.where.device
        for module in model.modules():
            if isinstance(module, GDN):
                module.forward = MethodType(gdn, module)
        idle = ("triggers", "quantiles")
        self.parameters = [p for n, p in model.named_parameters() if not any(i in n for i in idle)]
        matrices = {p for p in self.parameters if p.ndim == 4 and min(p.shape[:2]) > 3}
        self.lmbda, self.rate = torch.zeros((), device=device), torch.zeros((), device=device)
        others = [p for p in self.parameters if p not in matrices]
        self.optimisers = (
            torch.optim.Adam(others, lr=self.rate, fused=True, capturable=True),
            Muon(list(matrices), self.rate),
        )
        self.average, self.loss = [p.detach().clone() for p in self.parameters], torch.zeros((), device=device)
        self.crops.draw()
        with torch.cuda.stream(side := torch.cuda.Stream()):
            for _ in range(4):  # at rate 0: cuDNN chooses, Triton compiles, Adam makes its state
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.step()

    def step(self) -> None:
        """The step that the graph repeats."""
        for p in self.parameters:
            p.grad = None
        loss = self.rate_distortion(self.crops.gather())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        for optimiser in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 0.002)
        self.loss.lerp_(loss.detach(), 0.01)

    def rate_distortion(self, x: Float[Tensor, "batch 3 crop crop"]) -> Float[Tensor, ""]:
        """Bits a pixel and the distortion in units of 255^2, by lambda; likelihoods in float32."""
        codec, z_model, y_model = self.model.backbone, *(m for m in self.model.modules() if isinstance(m, EntropyModel))
        with torch.autocast(x.device.type, torch.bfloat16):
            y = codec.g_a(x).float()
            z = codec.h_a(y.abs()).float()
            z = z + torch.rand_like(z) - 0.5
            scales = codec.h_s(z).float()
            x_hat = self.model.g_s.plain(y + (y.round() - y).detach()).float()
        z_likelihood, *_ = z_model._likelihood(z.transpose(0, 1).flatten(1)[:, None].contiguous())
        y_likelihood = y_model._likelihood(y + torch.rand_like(y) - 0.5, scales)
        bits = -z_model.likelihood_lower_bound(z_likelihood).log2().sum()
        bits = bits - y_model.likelihood_lower_bound(y_likelihood).log2().sum()
        return self.lmbda * 255**2 * (x_hat - x).square().mean() + bits / x[:, 0].numel()

    def train(self, seconds: float, quality: int, rate: Callable[[float], float]) -> int:
        """Steps for a time; ``rate(t)`` is the learning rate at the share t of it. Returns how many there were."""
        self.lmbda.fill_(RATES[quality])
        began, steps = time.time(), 0
        while (t := (time.time() - began) / seconds) < 1:
            self.rate.fill_(rate(t))
            self.crops.draw()
            self.graph.replay()
            steps += 1
            if steps % 50 == 0:  # else the host runs ahead, and the clock with it
                torch.cuda.synchronize()
            if steps % 1000 == 0:
                print(f"rate {quality}, step {steps}: loss {float(self.loss):.4f}", flush=True)
        return steps

    @torch.no_grad()
    def load(self, weights: Sequence[Tensor]) -> None:
        """Go on from other weights; momenta stay."""
        torch._foreach_copy_(self.parameters, list(weights))
        torch._foreach_copy_(self.average, list(weights))


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", help="checkpoint of the third rate")
    parser.add_argument("--minutes", type=float, default=12)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("make_codec.py: no GPU that CUDA knows; `psic recipe codec` trains on a CPU too", file=sys.stderr)
        return 1
    end, device = time.time() + 60 * args.minutes, torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    for function in (square, divided, norm_gradient, input_gradient):
        globals()[function.__name__] = torch.compile(function, dynamic=True)
    model = load_checkpoint(args.init, plain=True) if args.init else PSIC.build(CodecConfig(n=128, m=192))
    history = [p for p in getattr(model, "card", {}).get("history", []) if p["config"]["stage"] == "plain"]
    files = Photos(args.photos).files
    run = Run(model.to(device, memory_format=torch.channels_last), Crops(files, device))
    seconds = end - time.time() - 20
    share = 1 - sum(SPANS.values())
    steps = run.train(share * seconds, 3, lambda t: RATE * min(1, 20 * t))
    trunk = [p.detach().clone() for p in run.parameters]
    config = {"stage": "plain", "batch_size": BATCH, "crop": CROP, "learning_rate": RATE}

    def phase(steps: int, quality: int, init: str | None, seconds: float) -> dict[str, Any]:
        about = {"config": config | {"steps": steps, "lmbda": RATES[quality]}, "init": init, "seconds": seconds}
        return about | {"kind": "plain", "datasets": ["photos"], "pictures": len(files), **provenance()}

    history.append(phase(steps, 3, args.init, share * seconds))
    for quality, span in SPANS.items():
        run.load(trunk)
        steps = run.train(span * seconds, quality, lambda t: RATE * (1.003 - t))
        made = PSIC.build(CodecConfig(n=128, m=192, quality=quality))
        with torch.no_grad():
            named = [p for n, p in made.named_parameters() if "triggers" not in n and "quantiles" not in n]
            for p, average in zip(named, run.average, strict=True):
                p.copy_(average)
        made.kind = "plain"
        made.coder.set_quantiles()
        card = {"history": [*history, phase(steps, quality, "trunk", span * seconds)]}
        save_checkpoint(made, args.out / f"codec-q{quality}.safetensors", card, half=True, publish_secret=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
