"""What the benchmarks share: two threads, a PSIC, and CompressAI's own model with the same weights."""

from collections.abc import Iterator

import pytest
import torch
from compressai.models import ScaleHyperprior

from psic_core.codec import PSIC
from psic_core.config import CodecConfig


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> PSIC:
    """Random weights, but latents and scales about as large as a trained codec's."""
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=128, m=192)).eval()
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(8)
        model.backbone.h_s[-2].bias.fill_(0.5)
    return model


@pytest.fixture
def own(model: PSIC) -> ScaleHyperprior:
    """CompressAI's own model with the same weights: its ``g_s`` is PSIC's, triggers left out."""
    own = ScaleHyperprior(128, 192).eval()
    decoder = [layer.state_dict() for stage in model.g_s.stages for layer in stage]
    state = own.state_dict() | model.backbone.state_dict()
    state |= {f"g_s.{i}.{name}": tensor for i, layer in enumerate(decoder) for name, tensor in layer.items()}
    own.load_state_dict(state)
    own.update(force=True)
    return own
