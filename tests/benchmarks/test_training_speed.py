"""A training step against a straightforward one, as the released code takes it, at equal model, batch and pictures.

That code recomputes everything: two image passes and a text pass an iteration, the encoder also where it is frozen.
Written anew from its description; same losses in kind, one condition drawn for each picture.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from test_codec_speed import in_turns

from psic_core import evidence
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.datasets.scenes import Scenes
from psic_core.models.vlp import Target, load_target
from psic_core.objectives import uaeo_loss
from psic_core.training.pairs import Pairs
from psic_core.training.trainer import Trainer

BATCH, SIZE = 8, 128  # the hyperprior codes multiples of 64
FASTER = 1.5  # what remains is the decoder and the target, there and back: both must run in every step


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("lite-clip")


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    scenes = Scenes("train", BATCH, SIZE)
    pictures = torch.stack([(scenes[i].image * 255).round().to(torch.uint8) for i in range(BATCH)])
    return Pairs(pictures, [scenes.captions(i) for i in range(BATCH)])


def straightforward(model: PSIC, target: Target, pairs: Pairs, frozen: bool) -> Callable[[], None]:
    """One step of joint training; ``frozen`` keeps encoder and entropy model fixed, as in stage two."""
    model.train()
    model.backbone.requires_grad_(not frozen)
    learn = [p for n, p in model.named_parameters() if p.requires_grad and not n.endswith("quantiles")]
    optimiser = torch.optim.Adam(learn, 1e-4)
    captions = [row[0] for row in pairs.captions]
    lmbda, weight = 0.0035, 0.2

    def step() -> None:
        optimiser.zero_grad()
        x = pairs.pictures.float() / 255
        coded = model.backbone(x)
        protect = (torch.arange(BATCH) % 2).float()[:, None]
        x_hat = model.g_s(coded["x_hat"], (1 - protect) * model.full_condition())
        bpp = -sum(p.log2().sum() for p in coded["likelihoods"].values()) / (BATCH * SIZE**2)
        mse = ((x_hat - x) ** 2).mean()
        clean, seen, text = target.encode_image(x), target.encode_image(x_hat), target.encode_text(captions)
        goal = evidence.target_captions(clean, text)
        loss = bpp + lmbda * 255**2 * mse + weight * uaeo_loss(seen, text, goal)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learn, 1.0)
        optimiser.step()

    return step


def ours(stage: str, target: Target, pairs: Pairs) -> Callable[[], object]:
    torch.manual_seed(0)
    config = TrainConfig(stage, 10**6, BATCH, SIZE, learning_rate=1e-4, pool=BATCH)
    run = Trainer(PSIC.build(CodecConfig()), pairs, config, target)
    return run.train_step


@pytest.mark.parametrize(("stage", "least"), [("two", FASTER), ("one", FASTER)])
def test_a_step_is_faster_than_a_straightforward_one(
    stage: str, least: float, target: Target, pairs: Pairs, benchmark: BenchmarkFixture
):
    """Stage two keeps what does not change: latents, captions, what the target made of the clean pictures."""
    torch.manual_seed(0)
    theirs = straightforward(PSIC.build(CodecConfig()), target, pairs, frozen=stage == "two")
    step = ours(stage, target, pairs.with_features(target))
    if stage == "one":  # S1-1 and S1-2 take turns, theirs does both at once on halves of the batch

        def both() -> None:
            step()
            step()

        ratio = in_turns(benchmark, "two steps of stage one, 8x128x128", both, lambda: (theirs(), theirs()), 6)
    else:
        ratio = in_turns(benchmark, "a step of stage two, 8x128x128", step, theirs, 10)
    assert ratio <= 1 / least
