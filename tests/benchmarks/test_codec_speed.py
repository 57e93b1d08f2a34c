"""PSIC's speed against CompressAI's own model of the same size, measured in turns in one run.

``make bench`` runs these without the tests' runtime type checks.
"""

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from compressai.losses import RateDistortionLoss
from compressai.models import ScaleHyperprior
from pytest_benchmark.fixture import BenchmarkFixture
from skimage import data
from torch import Tensor
from torch.nn import functional

from psic_core.bitstream import unpack
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, TrainConfig
from psic_core.models.vlp import load_target
from psic_core.training.pairs import Pairs
from psic_core.training.trainer import Trainer

pytestmark = pytest.mark.benchmark

ALLOWED = 1.25  # times CompressAI's own time: integers cost more than floats, and the shield comes on top


def in_turns(
    benchmark: BenchmarkFixture,
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
) -> float:
    """The ratio of the median times; first one, then the other begins, so that neither has the quieter moments."""
    taken: dict[str, list[float]] = {"ours": [], "theirs": []}

    def one_round() -> None:
        order = [("ours", ours), ("theirs", theirs)]
        for who, run in order if len(taken["ours"]) % 2 else reversed(order):
            started = time.perf_counter()
            run()
            taken[who].append(time.perf_counter() - started)

    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=2)
    medians = {who: median(times[2:]) for who, times in taken.items()}
    ratio = medians["ours"] / medians["theirs"]
    benchmark.extra_info.update({"ours_s": medians["ours"], "theirs_s": medians["theirs"], "ratio": ratio})
    print(f"\n{name}: PSIC {medians['ours']:.4f} s, theirs {medians['theirs']:.4f} s, ratio {ratio:.3f}")
    return ratio


def photo(height: int = 512, width: int = 768) -> Tensor:
    pixels = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None].float() / 255
    return functional.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True).clamp(0, 1)


@pytest.mark.parametrize("version", ["full", "protected"])
def test_encoding_and_decoding_takes_as_long_as_compressais_own(
    version: str, model: PSIC, own: ScaleHyperprior, benchmark: BenchmarkFixture
):
    x = photo()
    file = model.compress(x)
    assert 0.2 < 8 * len(file) / (512 * 768) < 1.2  # the entropy coder has as much to do as in earnest
    with torch.no_grad():
        coded = own.compress(x)
        theirs = own.decompress(coded["strings"], coded["shape"])["x_hat"]
    beta = model.full_condition() if version == "full" else None  # without the keyword's 0.3 s

    def psic() -> Tensor:
        stream = unpack(model.compress(x))
        return model.picture(model.latents(stream), stream.size, beta)

    assert torch.allclose(psic(), theirs, atol=1e-5)  # the same work is done: fresh triggers change nothing

    def compressai() -> None:
        with torch.no_grad():
            coded = own.compress(x)
            own.decompress(coded["strings"], coded["shape"])

    assert in_turns(benchmark, f"encode + decode 512x768, {version}", psic, compressai, 11) <= ALLOWED


def compressai_step(own: ScaleHyperprior, x: Tensor) -> Callable[[], None]:
    """A training step as CompressAI's example script takes it."""
    own.train()
    criterion = RateDistortionLoss(lmbda=0.0035)
    main = [p for n, p in own.named_parameters() if not n.endswith("quantiles")]
    quantiles = [p for n, p in own.named_parameters() if n.endswith("quantiles")]
    optimiser, aux = torch.optim.Adam(main, 1e-4), torch.optim.Adam(quantiles, 1e-3)

    def step() -> None:
        optimiser.zero_grad()
        aux.zero_grad()
        criterion(own(x), x)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(main, 1.0)
        optimiser.step()
        own.aux_loss().backward()
        aux.step()

    return step


def test_a_training_step_takes_as_long_as_compressais_own(own: ScaleHyperprior, benchmark: BenchmarkFixture):
    torch.manual_seed(0)
    pictures = torch.randint(256, (8, 3, 128, 128), dtype=torch.uint8)
    pairs = Pairs(pictures, [("a",)] * 8).with_features(target := load_target("tiny"))
    config = TrainConfig(stage="one", batch_size=8, crop=128, learning_rate=1e-4)
    run = Trainer(PSIC.build(CodecConfig(n=128, m=192)), pairs, config, target)

    def ours() -> None:
        run.step = 0  # S1-1's turn, always
        assert run.train_step()["objective"] == "full"

    ratio = in_turns(benchmark, "training step 8x128x128", ours, compressai_step(own, pictures / 255), 15)
    assert ratio <= 1.25  # it also draws its batch, decodes with triggers and logs


def test_a_training_step_in_bfloat16_gains_where_the_processor_has_it(benchmark: BenchmarkFixture):
    """ScaleHyperprior(128, 192) on 8 x 256 x 256, the step that trains the codec: the new path against float32's."""
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this processor has no bfloat16: training stays in float32 here")
    pictures = Pairs(torch.randint(256, (8, 3, 256, 256), dtype=torch.uint8), [()] * 8)
    runs = {}
    for precision in ("auto", "float32"):
        model = PSIC.build(CodecConfig(n=128, m=192))
        model.kind = "plain"
        runs[precision] = Trainer(model, pictures, TrainConfig(batch_size=8, crop=256, precision=precision))
    amx = torch.cpu._is_amx_tile_supported()
    ratio = in_turns(benchmark, "training step 8x256x256", runs["auto"].train_step, runs["float32"].train_step, 5)
    assert ratio <= (1 / 3 if amx else 2 / 3)
