"""The conditional latent trigger generator: where it stands, what it adds, what it leaves alone."""

import pytest
import torch
from compressai.registry import MODELS
from torch import Tensor, nn

from psic_core.models.compressai import split_stages
from psic_core.triggers import CLTG, ConditionalSynthesis

LATENT = torch.zeros(1, 12, 4, 4)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every trigger random weights, as training would."""
    torch.manual_seed(seed)
    for trigger in module.modules():
        if isinstance(trigger, CLTG):
            nn.init.normal_(trigger.w_d.weight)
            nn.init.normal_(trigger.w_d.bias)
    return module


def synthesis(seed: int = 0, ladder: int = 4) -> tuple[nn.Sequential, ConditionalSynthesis]:
    torch.manual_seed(seed)
    g_s = MODELS["bmshj2018-hyperprior"](8, 12).g_s
    return g_s, ConditionalSynthesis(*split_stages(g_s, LATENT), dim=16, hidden=8, ladder=ladder)


def betas(batch: int = 3, dim: int = 16) -> Tensor:
    return torch.randn(batch, dim, generator=torch.Generator().manual_seed(9))


# --- stages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "sizes", "channels"),
    [
        ("bmshj2018-factorized", (8, 12), [12, 8, 8, 8]),
        ("bmshj2018-factorized-relu", (8, 12), [12, 8, 8, 8]),
        ("bmshj2018-hyperprior", (8, 12), [12, 8, 8, 8]),
        ("mbt2018-mean", (8, 12), [12, 8, 8, 8]),
        ("mbt2018", (8, 12), [12, 8, 8, 8]),
        ("cheng2020-anchor", (8,), [8, 8, 8, 8, 8]),  # a residual block stands before the first up-sampling
        ("cheng2020-attn", (8,), [8, 8, 8, 8, 8]),
    ],
)
def test_stages_begin_where_the_picture_grows(architecture: str, sizes: tuple, channels: list[int]):
    torch.manual_seed(1)
    g_s = MODELS[architecture](*sizes).g_s
    latent = torch.randn(1, channels[0], 3, 2)
    stages, entering = split_stages(g_s, latent)
    assert entering == channels
    assert [layer for stage in stages for layer in stage] == list(g_s)
    x, growth = latent, []
    with torch.no_grad():
        for stage, count in zip(stages, entering, strict=True):
            assert x.shape[1] == count
            out = stage(x)
            growth.append(out.shape[-1] // x.shape[-1])
            x = out
        assert torch.equal(x, g_s(latent))
    assert growth[-4:] == [2, 2, 2, 2]
    assert growth[:-4] == [1] * (len(stages) - 4)


@pytest.mark.parametrize("g_s", [nn.Conv2d(12, 3, 1), nn.ModuleList([nn.Conv2d(12, 3, 1)])])
def test_synthesis_that_is_no_sequence_is_refused(g_s: nn.Module, unchecked_shapes: None):
    with pytest.raises(ValueError, match=f"{type(g_s).__name__}.*nn.Sequential"):
        split_stages(g_s, LATENT)


# --- one trigger -----------------------------------------------------------------------------------


def test_fresh_trigger_adds_exactly_nothing():
    out = CLTG(16, 5, hidden=8)(betas())
    assert out.shape == (3, 5, 1, 1)
    assert not out.any()


def test_trigger_is_the_printed_formula():
    trigger = awake(CLTG(16, 5, hidden=8))
    one, _, two, _ = trigger.mlp
    hidden = (betas() @ one.weight.T + one.bias).clamp(min=0)
    hidden = (hidden @ two.weight.T + two.bias).clamp(min=0)
    expected = hidden @ trigger.w_d.weight.T + trigger.w_d.bias
    assert torch.allclose(trigger(betas())[:, :, 0, 0], expected, atol=1e-5)


def test_a_trigger_measured_from_the_keys_is_zero_there():
    trigger, key = awake(CLTG(16, 5, hidden=8)), betas()[1]
    measured = trigger(betas(), key)
    assert measured[1].abs().max() < 1e-6
    assert torch.allclose(measured, trigger(betas()) - trigger(key[None]), atol=1e-5)


def test_an_anchored_trigger_gives_the_same_without_the_key():
    trigger, key = awake(CLTG(16, 5, hidden=8)), betas()[1]
    before = trigger(betas(), key)
    trigger.anchor(key)
    assert torch.allclose(trigger(betas()), before, atol=1e-5)
    assert trigger(betas()).abs().max() > 0.1


# --- conditional synthesis -------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [torch.zeros(3, 16), betas(), 1e3 * betas()])
def test_fresh_synthesis_is_the_backbone_bit_for_bit(beta: Tensor):
    g_s, decoder = synthesis()
    y_hat = torch.randn(3, 12, 4, 5).round()
    expected = g_s(y_hat)
    assert torch.equal(decoder(y_hat, beta), expected)
    assert torch.equal(decoder.plain(y_hat), expected)


def test_each_stage_gets_its_trigger_as_a_constant_over_the_plane():
    _, decoder = synthesis(ladder=0)
    awake(decoder)
    seen: list[Tensor] = []
    for stage in decoder.stages:
        stage.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    y_hat, beta = torch.randn(3, 12, 4, 5), betas()
    decoder(y_hat, beta)
    x = y_hat
    for got, trigger, stage in zip(list(seen), decoder.triggers, decoder.stages, strict=True):
        added = got - x
        assert torch.allclose(added, trigger.cltg(beta).expand_as(x), atol=1e-4)
        assert added.std((2, 3)).max() < 1e-5
        x = nn.Sequential(*stage)(got)  # a copy without the hook


def test_plain_synthesis_leaves_the_triggers_out():
    g_s, decoder = synthesis()
    awake(decoder)
    y_hat = torch.randn(3, 12, 4, 5)
    assert torch.equal(decoder.plain(y_hat), g_s(y_hat))
    assert not torch.allclose(decoder(y_hat, betas()), g_s(y_hat), atol=1e-3)


# --- the ladder ------------------------------------------------------------------------------------


def ladder(seed: int = 0) -> tuple[nn.Sequential, ConditionalSynthesis]:
    torch.manual_seed(seed)
    g_s = MODELS["bmshj2018-hyperprior"](8, 12).g_s
    return g_s, ConditionalSynthesis(*split_stages(g_s, LATENT), dim=16, hidden=8, ladder=4)


def test_a_ladder_has_a_rung_before_each_stage_and_one_on_the_picture():
    _, d = ladder()
    assert [t.write.out_channels for t in d.triggers] == [12, 8, 8, 8, 3]
    assert [t.write.in_channels for t in d.triggers] == [12, 8, 8, 8, 4]


def test_a_fresh_ladder_is_nothing_and_the_keys_stays_nothing():
    g_s, d = ladder()
    y_hat, beta = torch.randn(3, 12, 4, 6), betas()
    assert torch.equal(d(y_hat, beta), g_s(y_hat))
    awake(d)
    assert (d(y_hat, beta) - g_s(y_hat)).abs().max() > 0.1
    key = torch.randn(16)
    for trigger in d.triggers:
        trigger.cltg.anchor(key)
    assert torch.allclose(d(y_hat, key.expand(3, -1)), g_s(y_hat), atol=1e-4)
    assert torch.allclose(d(y_hat, beta), d(y_hat, beta, key), atol=1e-4)


def test_a_ladder_sees_the_whole_picture():
    _, d = ladder()
    awake(d)
    y_hat, beta = torch.randn(1, 12, 3, 20), betas(1)
    far = y_hat.clone()
    far[..., -1] += 3
    assert (d(y_hat, beta) - d(far, beta))[..., :16].abs().max() > 1e-4
    assert torch.equal(d.plain(y_hat)[..., :16], d.plain(far)[..., :16])


def test_a_fresh_ladder_can_be_trained():
    g_s, d = ladder()
    y_hat, beta = torch.randn(2, 12, 4, 4), betas(2)
    d.stages.requires_grad_(False)
    optimiser = torch.optim.Adam(d.triggers.parameters(), 1e-2)
    wanted = (g_s(y_hat) + 0.1).detach()
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        losses.append((d(y_hat, beta) - wanted).square().mean())
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.2 * losses[0]
