"""Refinement at the encoder: the latents of one photo, searched for, so that every decoder's protected picture is
read wrongly and its full picture rightly. Triggers answer all photos with one small network; this answers one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from compressai.models import MeanScaleHyperprior, ScaleHyperprior
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from psic_core.codec import PSIC
from psic_core.config import RATES
from psic_core.datasets.scenes import Scenes
from psic_core.images import pad_to, round_to_8_bits
from psic_core.objectives import questions_loss, uaeo_loss
from psic_core.targets import Target
from psic_core.tiles import WHOLE

LEAST = 1e-9  # CompressAI's lower bound of a likelihood
END = 0.1  # of the first step's length is left in the last


@dataclass(frozen=True)
class RefineConfig:
    """How far the search goes, and what it weighs; distortion and rate as in `psic_core.config.TrainConfig`.

    With L_UC of Eq. 9, L_Q its form for yes-or-no questions (`psic_core.objectives.questions_loss`), f the target's
    features and x_hat the picture that the file would hold without refinement::

        rate * (1 + mu) * R + lmbda * 255^2 * (MSE(x_hat_f, x) + mu * MSE(x_hat_e, x))
            + attack * (L_UC + questions * L_Q + away * cos(f(x_hat_e), f(x)))
            + drift * (1 - cos(f(x_hat_f), f(x_hat)))
    """

    steps: int = 40  # of gradient descent on the latents; fewer are faster, and find less
    reach: float = 0.33  # how far a latent can go, in quantisation steps; Adam's learning rate follows from it
    attack: float = 0.012  # bits per pixel that a unit of the attack's loss is worth, at any rate
    questions: float = 60.0  # beside Eq. 9: another's caption shares half of the attributes, and leaves them right
    away: float = 20.0  # away from what the model reads in the photo
    drift: float = 4.0  # keeps what the model reads in the full version
    mu: float = 1.0  # weight of MSE_e
    rate: float = 2.0  # above 1: bits are dearer to the search than to the codec, which spends them well already
    pool: int = 256  # captions that the least believed one is chosen from
    lmbda: float | None = None  # the codec's; None: `config.RATES` of its quality

    def __post_init__(self) -> None:
        for name in ("steps", "reach", "pool"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


class Refiner:
    """Searches the latents of a picture: ``model.refine = Refiner(model, target)``, then compress as ever.

    The file stays an ordinary file of the model: any copy decodes it, in the usual time and without the target. Only
    the encoder needs the target, and `RefineConfig.steps` times the work of a training step.

    Args:
        model: A PSIC over a hyperprior (``bmshj2018-hyperprior``, ``mbt2018-mean``), with its secret.
        target: The model under attack; `psic_core.targets.Ensemble` for several.
        config: The search.
        captions: What the target caption is chosen from (Eq. 8); the embedded scenes' where ``None``.
        questions: Pairs of prompts, of which a model believes one; the scenes' attributes where ``None``.

    Raises:
        ValueError: A plain codec, or one whose latents are not rounded independently of each other; no rate's lambda.
    """

    def __init__(
        self,
        model: PSIC,
        target: Target,
        config: RefineConfig | None = None,
        captions: Sequence[str] | None = None,
        questions: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        self.model, self.target, self.config = model, target, config or RefineConfig()
        if model.kind == "plain":
            raise ValueError("a plain codec decodes no protected version to refine; name a PSIC checkpoint")
        if type(model.backbone) not in (ScaleHyperprior, MeanScaleHyperprior):
            raise ValueError(
                f"refinement knows the rate of bmshj2018-hyperprior and mbt2018-mean, not of "
                f"{model.config.architecture}: leave refine out"
            )
        if self.config.lmbda is None and model.config.quality not in RATES:
            raise ValueError(f"quality {model.config.quality} has no lambda of ours; pass RefineConfig(lmbda=...)")
        self.lmbda = self.config.lmbda or RATES[model.config.quality]
        self.key = model.full_condition()
        self.texts = target.encode_text(list(captions or scene_captions(self.config.pool)))
        prompts = [prompt for pair in questions or Scenes("train", 1).attribute_prompts for prompt in pair]
        self.answers = target.encode_text(prompts).unflatten(0, (-1, 2))

    def __repr__(self) -> str:
        """What a file depends on besides the model."""
        words = hashlib.sha256(torch.cat([self.texts, self.answers.flatten(0, 1)]).cpu().numpy().tobytes())
        return f"Refiner({self.target.name}, {self.config}, words {words.hexdigest()[:8]})"

    def __call__(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch m h w"]:
        """Latents of pictures in [0, 1], before rounding: the best that the search met, picture by picture.

        Raises:
            ValueError: Larger than 4 megapixels: the whole decoder's gradient would have to fit into memory.
        """
        height, width = x.shape[-2:]
        if height * width > WHOLE:
            raise ValueError(f"{width}x{height} is too large to refine; scale it to at most {WHOLE:,} pixels")
        training = self.model.training
        frozen = [p for p in self.model.parameters() if p.requires_grad]
        self.model.eval().requires_grad_(False)
        try:
            with torch.enable_grad():
                return self._search(x)
        finally:
            self.model.train(training)
            for p in frozen:
                p.requires_grad_(True)

    # --- inside -----------------------------------------------------------------------------------------

    def _search(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch m h w"]:
        config = self.config
        y = self.model.backbone.g_a(pad_to(x, self.model.factor)).detach()
        with torch.no_grad():
            read = self.target.encode_image(x)
            _, means = predicted(self.model.backbone, y)
            plain = self.target.encode_image(self._decoded(rounded(y, means), x, self.key))
            chosen = doubted(read, self.texts)
        best, lowest = y.clone(), y.new_full((len(y),), torch.inf)
        lengths = (config.steps * (1 + END) + 1 - END) / 2  # of all steps, in the first one's; Adam's are its rate
        optimiser = torch.optim.Adam([y.requires_grad_()], config.reach / lengths)
        fall = torch.optim.lr_scheduler.LinearLR(optimiser, 1, END, config.steps)
        for step in range(config.steps + 1):
            losses = self._losses(x, y, read, plain, chosen)
            better = losses.detach() < lowest
            best[better], lowest[better] = y.detach()[better], losses.detach()[better]
            if step == config.steps:
                break
            optimiser.zero_grad()
            losses.sum().backward()
            optimiser.step()
            fall.step()
        return best

    def _losses(
        self,
        x: Float[Tensor, "batch 3 height width"],
        y: Float[Tensor, "batch m h w"],
        read: Float[Tensor, "batch d"],
        plain: Float[Tensor, "batch d"],
        chosen: Tensor,
    ) -> Float[Tensor, " batch"]:
        """`RefineConfig`'s objective, picture by picture."""
        config = self.config
        scales, means = predicted(self.model.backbone, y)
        y_hat = rounded(y, means)
        x_hat_f, x_hat_e = (self._decoded(y_hat, x, c) for c in (self.key, None))
        f_f, f_e = self.target.encode_image(x_hat_f), self.target.encode_image(x_hat_e)
        distortion = _mse(x_hat_f, x) + config.mu * _mse(x_hat_e, x)
        attack = config.away * (f_e * read).sum(1)
        attack = attack + torch.stack(
            [
                uaeo_loss(f, self.texts, c) + config.questions * questions_loss(f, r, self.answers)
                for f, r, c in zip(f_e.split(1), read.split(1), chosen.split(1), strict=True)
            ]
        )
        drift = 1 - (f_f * plain).sum(1)
        bpp = bits(y, scales, means) / (x.shape[-2] * x.shape[-1])
        costs = config.rate * (1 + config.mu) * bpp + self.lmbda * 255**2 * distortion
        return costs + config.attack * attack + config.drift * drift

    def _decoded(
        self, y_hat: Float[Tensor, "batch m h w"], x: Float[Tensor, "batch 3 height width"], condition: Tensor | None
    ) -> Float[Tensor, "batch 3 height width"]:
        """A version as it would be saved."""
        return round_to_8_bits(self.model.synthesize(y_hat, condition)[..., : x.shape[-2], : x.shape[-1]])


def rounded(y: Float[Tensor, "batch m h w"], means: Float[Tensor, "batch m h w"]) -> Float[Tensor, "batch m h w"]:
    """y_hat as the decoder gets it; rounding passes the gradient straight through."""
    return y + ((y - means).round() + means - y).detach()


def bits(
    y: Float[Tensor, "batch m h w"], scales: Float[Tensor, "batch m h w"], means: Float[Tensor, "batch m h w"]
) -> Float[Tensor, " batch"]:
    """What latents cost, without the hyper-latents: ``-log2`` of the mass of a quantisation step around each.

    Taken at y itself and not at what it is rounded to. At a latent that is rounded to its mean the rate is flat, and
    the search would not see that leaving it costs.
    """
    away = (y - means).abs()
    mass = torch.special.ndtr((0.5 - away) / scales) - torch.special.ndtr((-0.5 - away) / scales)
    return -mass.clamp_min(LEAST).log2().sum((1, 2, 3))


@torch.no_grad()
def predicted(
    backbone: nn.Module, y: Float[Tensor, "batch m h w"]
) -> tuple[Float[Tensor, "batch m h w"], Float[Tensor, "batch m h w"]]:
    """Standard deviation and mean of each latent, as the rounded hyper-latents tell the decoder."""
    with_means = isinstance(backbone, MeanScaleHyperprior)
    z_hat, _ = backbone.entropy_bottleneck(backbone.h_a(y if with_means else y.abs()))
    told = backbone.h_s(z_hat)
    scales, means = told.chunk(2, 1) if with_means else (told, torch.zeros_like(told))
    return backbone.gaussian_conditional.lower_bound_scale(scales), means


def doubted(read: Float[Tensor, "batch d"], texts: Float[Tensor, "k d"]) -> Tensor:
    """Each picture's least believed caption, Eq. 5 to 8 without the captions' side.

    Photos come one by one and their own caption is not known: belief falls with evidence, and evidence with the
    cosine, so that the smallest cosine decides even where tanh saturates.
    """
    return (read @ texts.T).argmin(1)


def scene_captions(count: int) -> list[str]:
    """Different captions of the embedded training scenes, ``count`` of them at most."""
    scenes, found = Scenes("train", count), dict[str, None]()
    for i in range(count):
        found |= dict.fromkeys(scenes.captions(i)[:1])
    return list(found)


def _mse(x_hat: Float[Tensor, "batch 3 height width"], x: Float[Tensor, "batch 3 height width"]) -> Tensor:
    return functional.mse_loss(x_hat, x, reduction="none").mean((1, 2, 3))
