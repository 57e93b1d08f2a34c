"""PSIC, the codec: one stream and two pictures, on a tiny model with random weights."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from compressai.registry import MODELS
from models import SMALL, awaken, backbone
from torch import Tensor, nn

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.models.entropy import SCALES
from psic_core.models.images import pad_to

CONFIG = CodecConfig(n=8, m=12, dim=16, hidden=8)
OWNER = "the owner's words"
SECRET, OTHER = keys.secret(OWNER), bytes(range(16))


def picture(height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Smooth noise: as busy as a photo, and of any size."""
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth * 255).round().clamp(0, 255) / 255


def busy(seed: int = 0, config: CodecConfig = CONFIG, secret: bytes | None = SECRET, spread: float = 3) -> PSIC:
    """A model with full strings and triggers that show, as after training.

    Latents spread by ``spread`` at least and the hyperprior says so; pictures lie inside [0, 1].
    """
    torch.manual_seed(seed)
    model = PSIC.build(config, secret).eval()
    backbone, last = model.backbone, model.g_s.stages[-1][-1]
    with torch.no_grad():
        awaken(model, scale=1)
        y = backbone.g_a(picture(128, 128, seed=99))
        backbone.g_a[-1].weight *= (spread / y.std((0, 2, 3)))[:, None, None, None]
        backbone.g_a[-1].bias *= 0
        y = backbone.g_a(picture(128, 128, seed=99))
        backbone.h_s[-2].weight *= 0.1
        backbone.h_s[-2].bias.copy_(y.square().mean((0, 2, 3)).sqrt())
        x_hat = model(picture(128, 128, seed=99))["x_hat"]
        last.weight *= 0.15 / x_hat.std()
        last.bias.fill_(0.5)
    return model


@functools.cache
def model_and_file() -> tuple[PSIC, bytes]:
    """A model that no test changes, and a file that it wrote."""
    model = busy()
    return model, model.compress(picture(), "my cat")


@pytest.fixture
def model() -> PSIC:
    """The same model once more, to be changed at will."""
    return busy()


def perturb(parameters: list[nn.Parameter]) -> None:
    with torch.no_grad():
        for p in parameters:
            p.add_(0.05 * torch.randn_like(p))


# --- forward ---------------------------------------------------------------------------------------


def test_forward_takes_one_condition_or_one_a_picture():
    model, _ = model_and_file()
    x, c = picture().expand(2, -1, -1, -1), model.full_condition()
    both = model(x, torch.stack([torch.zeros(16), c]))["x_hat"]
    assert torch.allclose(both[:1], model(x[:1])["x_hat"], atol=1e-5)
    assert torch.allclose(both[1:], model(x[:1], c)["x_hat"], atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


@pytest.mark.parametrize("training", [False, True])
def test_quantised_latents_are_what_a_decoder_gets(model: PSIC, training: bool):
    model.train(training)
    got = model.quantised_latents(picture())
    assert torch.equal(got, model.latents(bitstream.unpack(model.compress(picture()))))
    assert torch.equal(got, got.round())
    assert got.abs().max() > 3
    assert model.backbone.training == training
    assert not got.requires_grad


# --- a file decodes to what forward shows ----------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (63, 65), (40, 160), (130, 7)])
def test_file_decodes_to_what_forward_shows(size: tuple[int, int]):
    model, _ = model_and_file()
    x, (height, width) = picture(*size), size
    stream = model.compress(x, "my cat")
    for condition, keyword in ((None, None), (model.full_condition(), "my cat")):
        with torch.no_grad():
            expected = model(pad_to(x, 64), condition)["x_hat"][..., :height, :width].clamp(0, 1)
        got = model.decompress_tensor(stream, keyword)
        assert torch.equal(got, expected)
        assert got.shape == x.shape
        shown = model.decompress(stream, keyword)
        assert shown.size == (width, height)
        assert np.array_equal(np.asarray(shown), (expected[0].permute(1, 2, 0) * 255).round().numpy())


# --- keywords --------------------------------------------------------------------------------------


def test_keyword_and_passphrase_give_the_full_version():
    model, file = model_and_file()
    protected, full = model.decompress_tensor(file), model.decompress_tensor(file, "my cat")
    assert (protected - full).abs().mean() > 0.01
    assert torch.equal(model.decompress_tensor(file, OWNER), full)
    assert torch.equal(model.decompress_tensor(model.compress(picture()), OWNER), full)
    assert np.array_equal(np.asarray(model.decompress(file, "my cat")), np.asarray(model.decompress(file, OWNER)))


@pytest.mark.parametrize("keyword", ["My cat", "my cat ", "their dog"])
def test_wrong_keyword_is_neither_an_error_nor_the_full_version(keyword: str):
    model, file = model_and_file()
    got = model.decompress_tensor(file, keyword)
    assert (got - model.decompress_tensor(file, "my cat")).abs().mean() > 0.01
    assert (got - model.decompress_tensor(file)).abs().mean() > 1e-3  # another direction, not zero
    assert torch.equal(got, model.decompress_tensor(model.compress(picture()), keyword))


@pytest.mark.parametrize("keyword", ["", " "])
def test_blank_keyword_is_refused(keyword: str):
    model, file = model_and_file()
    for call in (lambda: model.decompress(file, keyword), lambda: model.compress(picture(), keyword)):
        with pytest.raises(ValueError, match="keyword is blank"):
            call()


def test_each_of_several_keywords_opens_the_file():
    model, file = model_and_file()
    stream = bitstream.unpack(file)
    slots = tuple(keys.seal(SECRET, words, bitstream.binding(stream)) for words in ("one", "two"))
    two = bitstream.pack(stream._replace(slots=slots))
    full = model.decompress_tensor(file, "my cat")
    assert torch.equal(model.decompress_tensor(two, "one"), full)
    assert torch.equal(model.decompress_tensor(two, "two"), full)
    assert not torch.allclose(model.decompress_tensor(two, "my cat"), full, atol=1e-2)


def test_model_without_its_secret_decodes_what_a_keyword_opens(model: PSIC):
    file, full = model_and_file()[1], model.decompress_tensor(model_and_file()[1], "my cat")
    model.secret = None
    assert torch.equal(model.decompress_tensor(file, "my cat"), full)
    assert torch.equal(model.decompress_tensor(file, OWNER), full)
    assert bitstream.unpack(model.compress(picture())).slots == ()
    for call in (model.full_condition, lambda: model.compress(picture(), "my cat")):
        with pytest.raises(ValueError, match=r"does not hold its secret; call model.unlock"):
            call()


def test_slot_of_another_file_opens_nothing():
    model, file = model_and_file()
    other = bitstream.unpack(model.compress(picture(seed=5)))
    moved = bitstream.pack(other._replace(slots=bitstream.unpack(file).slots))
    assert model.version_of(bitstream.unpack(moved), "my cat").name == "wrong keyword"
    assert model.version_of(bitstream.unpack(file), "my cat").name == "full"


def test_decoded_picture_says_its_version():
    model, file = model_and_file()
    said = {words: model.decompress(file, words).info["version"] for words in (None, "my cat", OWNER, "wrong")}
    assert said == {None: "protected", "my cat": "full", OWNER: "full", "wrong": "protected"}


@pytest.mark.parametrize("check", [keys.check(SECRET), b""])
def test_passphrase_of_another_model_does_not_unlock(check: bytes, model: PSIC):
    model.secret, model.secret_check = None, check
    with pytest.raises(ValueError, match="does not open this model's full version"):
        model.unlock("the owner's word")
    assert model.secret is None
    model.unlock(OWNER)
    assert model.secret == SECRET


def test_files_that_may_not_open_elsewhere_say_so_once():
    ours = PSIC.wrap(backbone("cheng2020-anchor"), SECRET, **SMALL).eval()
    with pytest.warns(UserWarning, match="files of cheng2020-anchor are not portable"):
        file = ours.compress(picture())
    ours.compress(picture())
    assert not bitstream.unpack(file).portable


# --- what is coded depends on the picture and the encoder alone ------------------------------------


def test_keyword_changes_its_slot_and_nothing_else():
    model, _ = model_and_file()
    none, one, two = (model.compress(picture(), k) for k in (None, "one", "two"))
    start = bitstream.header_bytes(2)
    size = bitstream.CHUNK_BYTES + keys.SLOT_BYTES
    assert len(one) == len(two) == len(none) + size
    assert one[:start] == two[:start]
    assert one[start + size :] == two[start + size :] == none[start:]
    assert one[start : start + size] != two[start : start + size]
    assert bitstream.unpack(one)._replace(slots=()) == bitstream.unpack(none)


def test_fingerprint_changes_with_every_weight_of_the_backbone(model: PSIC):
    original = [p.detach().clone() for p in model.backbone.parameters()]
    seen = [model.fingerprint()]
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.view(-1)[-1] += 1e-3
            seen.append(model.fingerprint())
        assert len(set(seen)) == len(original) + 1
        for p, value in zip(model.backbone.parameters(), original, strict=True):
            p.copy_(value)
    assert model.fingerprint() == seen[0]
    assert len(seen[0]) == 8


def test_another_models_file_is_refused(model: PSIC):
    _, file = model_and_file()
    for stranger in (busy(8), busy(config=replace(CONFIG, quality=3))):
        with pytest.raises(BitstreamError, match=r"written by bmshj2018-hyperprior q2 .*load the checkpoint"):
            stranger.decompress(file)
    perturb([model.backbone.h_s[0].weight])
    with pytest.raises(BitstreamError, match="load the checkpoint"):
        model.decompress(file)
    perturb(list(model.g_s.parameters()))
    with pytest.raises(BitstreamError, match="load the checkpoint"):
        model.decompress(file, "my cat")


# --- update() cannot be forgotten ------------------------------------------------------------------


def optimise(model: PSIC, **options: bool) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 1e-2, **options)
    out = model.train()(picture())
    (out["x_hat"].square().mean() - out["likelihoods"]["z"].log().mean()).backward()
    optimiser.step()
    model.eval()


def step_quantiles(model: PSIC) -> None:
    model.backbone.aux_loss().backward()
    torch.optim.Adam([model.backbone.entropy_bottleneck.quantiles], 0.1).step()


def write_data(model: PSIC) -> None:
    next(model.backbone.entropy_bottleneck.parameters()).data.add_(0.3)  # tensors do not count such changes


@pytest.mark.parametrize(
    "change",
    [
        optimise,
        functools.partial(optimise, fused=True),
        step_quantiles,
        write_data,
    ],
    ids=["adam", "fused", "quantiles", "data"],
)
def test_update_cannot_be_forgotten(model: PSIC, change: Callable[[PSIC], None]):
    old, before = model.compress(picture()), model.fingerprint()
    change(model)
    new = model.compress(picture())
    explicit = MODELS["bmshj2018-hyperprior"](8, 12)
    weights = dict(model.backbone.named_parameters())
    with torch.no_grad():
        for name, p in explicit.named_parameters():
            p.copy_(weights.get(name, p))
        explicit.update(scale_table=SCALES, force=True)
        coded = explicit.compress(picture())
    lengths = [len(string) for string in bitstream.unpack(new).strings]
    assert lengths == pytest.approx([len(string) for (string,) in coded["strings"]], abs=4)
    fresh = busy()
    fresh.load_state_dict(model.state_dict())
    assert fresh.compress(picture()) == new
    assert model.fingerprint() != before
    model.decompress(new)
    with pytest.raises(BitstreamError, match="load the checkpoint"):
        model.decompress(old)


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["half", "double", "bfloat16", "meta", "part"])
def test_model_that_would_corrupt_streams_is_refused(model: PSIC, change: str):
    _, file = model_and_file()
    if change == "part":
        model.backbone.h_s.double()
    else:
        model.to("meta") if change == "meta" else getattr(model, change)()
    named = {"half": "float16", "double": "float64", "part": "float64"}.get(change, change)
    for call in (lambda: model.compress(picture()), lambda: model.decompress(file)):
        with pytest.raises(ValueError, match=rf"{named}.* would not decode elsewhere: call model\.cpu"):
            call()


def bad(value: float) -> Tensor:
    x = picture(8, 8).clone()
    x[0, 1, 2, 3] = value
    return x


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (bad(math.nan), "nan"),
        (bad(math.inf), "inf"),
        (bad(1.01), "1.01"),
        (picture(8, 8) * 255, "255"),
        ((picture(8, 8) * 255).to(torch.uint8), "uint8"),
        (picture(8, 8).expand(2, -1, -1, -1), r"\(2, 3, 8, 8\)"),
        (picture(8, 8)[:, :1], r"\(1, 1, 8, 8\)"),
        (picture(8, 8).permute(0, 2, 3, 1), r"\(1, 8, 8, 3\)"),
        (picture(8, 8)[0, 0], r"\(8, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"\(1, 3, 0, 8\)"),
    ],
)
def test_bad_tensor_is_refused(x: Tensor, says: str, unchecked_shapes: None):
    with pytest.raises(ValueError, match=says):
        model_and_file()[0].compress(x)


# --- re-keying -------------------------------------------------------------------------------------


def test_rekeying_is_exact_on_decoded_pictures(model: PSIC):
    _, file = model_and_file()
    protected, full = model.decompress_tensor(file), model.decompress_tensor(file, OWNER)
    before = model.compress(picture())
    keys.rekey(model, SECRET, keys.secret("new words"))
    assert torch.allclose(model.decompress_tensor(file, "new words"), full, rtol=0, atol=1e-6)
    assert torch.equal(model.decompress_tensor(file), protected)
    for stale in (OWNER, "my cat"):  # the slot holds the old secret
        assert (model.decompress_tensor(file, stale) - full).abs().mean() > 0.01
    assert model.compress(picture()) == before
    renewed = model.compress(picture(), "my cat")
    assert torch.allclose(model.decompress_tensor(renewed, "my cat"), full, rtol=0, atol=1e-6)
