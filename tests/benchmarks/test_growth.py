"""How the cost of each task grows with picture and batch, beside CompressAI's plain model in the same run."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from compressai.models import ScaleHyperprior
from pytest_benchmark.fixture import BenchmarkFixture
from test_codec_speed import compressai_step, in_turns, photo

from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.passes import Reader, read
from psic_core.metrics import psnr
from psic_core.models.vlp import load_target
from psic_core.training.pairs import Pairs
from psic_core.training.trainer import Trainer

SIDES = (256, 512, 1024)
BATCHES = (2, 4, 8)
ROUNDS = 3  # after two to warm up: few and noisy, hence the wide limits; `test_codec_speed` measures one size well

sides = pytest.mark.parametrize("side", SIDES)


def measured(
    benchmark: BenchmarkFixture,
    task: str,
    side: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    allowed: float,
) -> None:
    with torch.no_grad():
        about = {"task": task, "megapixels": side**2 / 1e6}
        assert in_turns(benchmark, f"{task} {side}x{side}", ours, theirs, ROUNDS, about) <= allowed


@sides
def test_encoding(side: int, model: PSIC, own: ScaleHyperprior, benchmark: BenchmarkFixture):
    x = photo(side, side)
    measured(benchmark, "encode", side, partial(model.compress, x), partial(own.compress, x), 1.5)


@sides
@pytest.mark.parametrize(("version", "keyword", "allowed"), [("full", "psic course", 1.6), ("protected", None, 1.6)])
def test_decoding(
    version: str,
    keyword: str | None,
    allowed: float,
    side: int,
    model: PSIC,
    own: ScaleHyperprior,
    benchmark: BenchmarkFixture,
):
    """The passphrase costs its derivation, some 50 ms whatever the picture: what a keyword costs, too."""
    x = photo(side, side)
    file = model.compress(x)
    with torch.no_grad():
        coded = own.compress(x)
    theirs = partial(own.decompress, coded["strings"], coded["shape"])
    ours = partial(model.decompress_tensor, file, keyword)
    ours()
    measured(benchmark, f"decode {version}", side, ours, theirs, allowed + (side < 512) * 1.5)


@sides
def test_the_triggers_overhead(side: int, model: PSIC, own: ScaleHyperprior, benchmark: BenchmarkFixture):
    """Synthesis alone, without entropy decoding: with all triggers against CompressAI's ``g_s``."""
    y_hat = model.quantised_latents(photo(side, side))
    measured(benchmark, "synthesis with triggers", side, partial(model.synthesize, y_hat), partial(own.g_s, y_hat), 1.6)


@pytest.mark.parametrize("side", SIDES[:2])
def test_evaluation(side: int, model: PSIC, own: ScaleHyperprior, benchmark: BenchmarkFixture):
    """A picture, coded with PSIC and the plain codec, all versions measured and read; theirs is one, read once."""
    x, target = photo(side, side), load_target("lite-clip")
    plain = PSIC.build(model.config)
    plain.load_state_dict(model.state_dict())
    plain.kind = "plain"
    data = EvalSet("one", 1, lambda _: x[0])
    reader = Reader("lite-clip", target, target.encode_image)

    def compressai() -> None:
        coded = own.compress(x)
        x_hat = own.decompress(coded["strings"], coded["shape"])["x_hat"]
        psnr(x_hat, x)
        target.encode_image(torch.cat([x, x_hat]))

    ours = partial(read, model, plain.eval(), data, [reader])
    measured(benchmark, "evaluation", side, ours, compressai, 8)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("stage", "allowed"), [("plain", 1.5), ("two", 3.0)])
def test_a_training_step(stage: str, allowed: float, batch: int, own: ScaleHyperprior, benchmark: BenchmarkFixture):
    """Stage two decodes and asks the target, there and back, but never encodes; theirs is rate-distortion alone."""
    torch.manual_seed(0)
    pictures = torch.randint(256, (batch, 3, 128, 128), dtype=torch.uint8)
    target = load_target("lite-clip")
    pairs = Pairs(pictures, [(f"a {i}",) for i in range(batch)]).with_features(target)
    config = TrainConfig(stage, 10**6, batch, 128, learning_rate=1e-4)
    run = Trainer(PSIC.build(CodecConfig(n=64, m=96)), pairs, config, target)
    about = {"task": "training step" if stage == "plain" else "step of stage two", "batch": batch}
    theirs = compressai_step(own, pictures / 255)
    name = f"{about['task']}, {batch}x128x128"
    assert in_turns(benchmark, name, run.train_step, theirs, ROUNDS, about) <= allowed
