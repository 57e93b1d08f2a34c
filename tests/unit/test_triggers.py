"""The conditional latent trigger generator: where it stands, what it adds, what it leaves alone."""

import pytest
import torch
from compressai.registry import MODELS
from models import awaken
from torch import Tensor, nn

from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.models.compressai import split_stages
from psic_core.triggers import CLTG, ConditionalSynthesis, Injection

LATENT = torch.zeros(1, 12, 4, 4)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every trigger random weights, as training would."""
    torch.manual_seed(seed)
    for trigger in module.modules():
        if isinstance(trigger, CLTG):
            nn.init.normal_(trigger.w_d.weight)
            nn.init.normal_(trigger.w_d.bias)
    return module


def synthesis(seed: int = 0, residual: int = 4) -> tuple[nn.Sequential, ConditionalSynthesis]:
    torch.manual_seed(seed)
    g_s = MODELS["bmshj2018-hyperprior"](8, 12).g_s
    return g_s, ConditionalSynthesis(*split_stages(g_s, LATENT), dim=16, hidden=8, residual=residual)


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


def test_stages_share_the_weights_of_g_s():
    g_s, decoder = synthesis()
    assert {id(p) for p in decoder.stages.parameters()} == {id(p) for p in g_s.parameters()}


@pytest.mark.parametrize("g_s", [nn.Conv2d(12, 3, 1), nn.ModuleList([nn.Conv2d(12, 3, 1)])])
def test_synthesis_that_is_no_sequence_is_refused(g_s: nn.Module, unchecked_shapes: None):
    with pytest.raises(ValueError, match=f"{type(g_s).__name__}.*nn.Sequential"):
        split_stages(g_s, LATENT)


@pytest.mark.parametrize(
    "layers", [[], [nn.Conv2d(12, 3, 1)], [nn.Conv2d(12, 3, 3, stride=2), nn.Upsample(scale_factor=2)]]
)
def test_synthesis_that_never_grows_is_refused(layers: list[nn.Module]):
    with pytest.raises(ValueError, match=r"\(1, 12, 4, 4\).*no up-sampling"):
        split_stages(nn.Sequential(*layers), LATENT)


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


def test_trigger_depends_on_its_own_condition_only():
    trigger = awake(CLTG(16, 5))
    together, alone = trigger(betas()), trigger(betas()[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


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


# --- one injection ---------------------------------------------------------------------------------


def test_injection_is_shift_and_gated_block():
    injection = awake(Injection(16, 5, hidden=8, width=3))
    h = torch.randn(3, 5, 6, 7)
    shift, gate = injection.cltg(betas())[:, :5], injection.cltg(betas())[:, 5:]
    assert torch.allclose(injection(h, betas()), h + shift + gate * injection.block(h), atol=1e-6)
    key = betas()[2]
    assert torch.allclose(injection(h, betas(), key)[2], h[2], atol=1e-5)  # the key changes nothing


def test_injection_without_a_block_is_the_papers_constant():
    injection = awake(Injection(16, 5, hidden=8, width=0))
    h = torch.randn(3, 5, 6, 7)
    assert not list(injection.block.parameters())
    assert torch.allclose(injection(h, betas()) - h, injection.cltg(betas()).expand_as(h), atol=1e-5)


def test_the_block_answers_to_the_picture():
    """What it adds differs from place to place and from picture to picture; a constant does not."""
    injection = awake(Injection(16, 5, hidden=8, width=3))
    one, two = torch.randn(2, 3, 5, 6, 7)
    added = [injection(h, betas()) - h for h in (one, two)]
    assert added[0].std((2, 3)).max() > 1e-2
    assert not torch.allclose(added[0], added[1], atol=1e-2)


# --- conditional synthesis -------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [torch.zeros(3, 16), betas(), 1e3 * betas()])
def test_fresh_synthesis_is_the_backbone_bit_for_bit(beta: Tensor):
    g_s, decoder = synthesis()
    y_hat = torch.randn(3, 12, 4, 5).round()
    expected = g_s(y_hat)
    assert torch.equal(decoder(y_hat, beta), expected)
    assert torch.equal(decoder.plain(y_hat), expected)


def test_each_stage_gets_its_trigger_as_a_constant_over_the_plane():
    _, decoder = synthesis(residual=0)
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


def test_two_conditions_decode_to_two_pictures():
    _, decoder = synthesis()
    awake(decoder)
    y_hat = torch.randn(1, 12, 4, 5).expand(3, -1, -1, -1)
    one, two, three = decoder(y_hat, betas())
    assert not torch.allclose(one, two, atol=1e-3)
    assert not torch.allclose(two, three, atol=1e-3)
    again = decoder(y_hat[:1], betas()[2:])
    assert torch.allclose(again[0], three, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_gradient_of_a_trigger_reaches_only_its_own_module(index: int):
    _, decoder = synthesis()
    awake(decoder)
    h = torch.randn(3, (12, 8, 8, 8)[index], 4, 5)
    decoder.triggers[index](h, betas()).square().sum().backward()
    reached = {name for name, p in decoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {n for n, _ in decoder.named_parameters() if n.startswith(f"triggers.{index}.")}


def test_triggers_share_nothing():
    _, decoder = synthesis()
    parameters = list(decoder.parameters())
    assert len({p.data_ptr() for p in parameters}) == len(parameters)


def test_a_fresh_trigger_can_be_trained():
    _, decoder = synthesis()
    decoder(torch.randn(3, 12, 4, 5), betas()).square().mean().backward()
    for trigger in decoder.triggers:
        assert trigger.cltg.w_d.weight.grad.any()  # zero weights stop the gradient behind them, not their own
        assert trigger.cltg.w_d.bias.grad.any()


@pytest.mark.parametrize(
    ("residual", "widths"), [(0, [0, 0, 0, 0]), (1, [4, 2, 1, 0]), (4, [12, 8, 4, 0]), (99, [12, 8, 8, 0])]
)
def test_blocks_grow_where_pixels_are_few(residual: int, widths: list[int]):
    _, decoder = synthesis(residual=residual)
    assert [t.block[0].out_channels if len(t.block) else 0 for t in decoder.triggers] == widths


def test_conditions_must_match_the_batch(unchecked_shapes: None):
    _, decoder = synthesis()
    awake(decoder)
    with pytest.raises(RuntimeError):
        decoder(torch.randn(2, 12, 4, 5), betas(3))
    with pytest.raises(RuntimeError):
        decoder(torch.randn(3, 12, 4, 5), betas(3, dim=15))


def test_injections_can_stop_after_y_hat():
    torch.manual_seed(0)
    model = awaken(PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8, residual=4, injections=1))).eval()
    assert len(model.g_s.triggers) == 1
    y_hat = torch.randn(1, 12, 4, 4)
    beta = torch.zeros(1, 16)
    changed = model.g_s.triggers[0](y_hat, beta)
    assert not torch.equal(changed, y_hat)
    assert torch.equal(model.g_s(y_hat, beta), model.g_s.plain(changed))
    assert torch.allclose(model.synthesize(y_hat, model.full_condition()), model.g_s.plain(y_hat))


@pytest.mark.parametrize("count", [0, 5])
def test_injections_fit_the_stages(count: int):
    with pytest.raises(ValueError, match=f"injections {count}: this decoder has 4 stages"):
        PSIC.build(CodecConfig(n=8, m=12, dim=16, hidden=8, injections=count))


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
