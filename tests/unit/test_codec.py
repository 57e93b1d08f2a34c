"""PSIC, the codec: one stream and two pictures, on a tiny model with random weights."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from compressai.registry import MODELS
from models import awaken
from PIL import Image
from torch import Tensor, nn

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_SECRET, CodecConfig
from psic_core.models.entropy import SCALES
from psic_core.models.images import pad_to, to_rgb, to_tensor

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


# --- a fresh PSIC is its backbone ------------------------------------------------------------------


def twins(architecture: str) -> tuple[PSIC, nn.Module]:
    """A fresh PSIC, and CompressAI's model with the same weights."""
    sizes = (8,) if architecture.startswith("cheng") else (8, 12)
    torch.manual_seed(3)
    ours = PSIC(MODELS[architecture](*sizes), replace(CONFIG, architecture=architecture), SECRET)
    torch.manual_seed(3)
    return ours.eval(), MODELS[architecture](*sizes).eval()


ARCHITECTURES = ["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-anchor"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("training", [False, True])
def test_fresh_forward_is_the_backbones_bit_for_bit(architecture: str, training: bool):
    ours, theirs = twins(architecture)
    x = picture(64, 128)
    for condition in (None, ours.full_condition(), torch.randn(1, 16)):
        torch.manual_seed(4)  # quantisation noise, in training
        got = ours.train(training)(x, condition)
        torch.manual_seed(4)
        expected = theirs.train(training)(x)
        assert torch.equal(got["x_hat"], expected["x_hat"])
        assert got["likelihoods"].keys() == expected["likelihoods"].keys()
        assert all(torch.equal(p, expected["likelihoods"][k]) for k, p in got["likelihoods"].items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_file_decodes_to_the_backbones_picture(architecture: str):
    ours, theirs = twins(architecture)
    x = picture(64, 64)
    theirs.update(scale_table=SCALES, force=True)
    with torch.no_grad():
        coded = theirs.compress(x)
        x_hat = theirs.decompress(coded["strings"], coded["shape"])["x_hat"]
    stream = ours.compress(x)
    strings = bitstream.unpack(stream).strings
    assert [len(s) for s in strings] == pytest.approx([len(string) for (string,) in coded["strings"]], abs=4)
    assert bitstream.unpack(stream).portable == (architecture in ("bmshj2018-hyperprior", "mbt2018-mean"))
    for keyword in (None, OWNER):
        got = ours.decompress_tensor(stream, keyword)  # predicted means are rounded to 2^-12
        assert torch.equal(got, x_hat) if architecture != "mbt2018-mean" else torch.allclose(got, x_hat, atol=1e-3)


def test_wrapping_keeps_the_backbones_weights():
    torch.manual_seed(5)
    backbone = MODELS["bmshj2018-hyperprior"](8, 12)
    before = {id(p): p.detach().clone() for p in backbone.parameters()}
    ours = PSIC(backbone, CONFIG)
    after = {id(p): p for p in ours.parameters()}
    assert all(torch.equal(after[key], p) for key, p in before.items())
    assert len(after) == len(before) + len(list(ours.g_s.triggers.parameters()))
    assert ours.secret is None
    assert ours.training


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match=r"'jpeg'.*bmshj2018-hyperprior"):
        PSIC.build(replace(CONFIG, architecture="jpeg"))


def test_build_takes_the_public_secret_by_default():
    assert PSIC.build(CONFIG).secret == PUBLIC_SECRET
    assert PSIC.build(CONFIG, OTHER).secret == OTHER


# --- forward ---------------------------------------------------------------------------------------


def test_forward_keeps_the_contract():
    model, _ = model_and_file()
    out = model(picture(64, 128).expand(2, -1, -1, -1))
    assert out.keys() == {"x_hat", "y_hat", "likelihoods"}
    assert out["x_hat"].shape == (2, 3, 64, 128)
    assert out["y_hat"].shape == (2, 12, 4, 8)
    assert out["likelihoods"].keys() == {"y", "z"}


def test_forward_takes_one_condition_or_one_a_picture():
    model, _ = model_and_file()
    x, c = picture().expand(2, -1, -1, -1), model.full_condition()
    both = model(x, torch.stack([torch.zeros(16), c]))["x_hat"]
    assert torch.allclose(both[:1], model(x[:1])["x_hat"], atol=1e-5)
    assert torch.allclose(both[1:], model(x[:1], c)["x_hat"], atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_known_latents_skip_the_backbone():
    model, _ = model_and_file()
    out = model(picture(), model.full_condition())
    again = model(picture(seed=7), model.full_condition(), y_hat=out["y_hat"])
    assert torch.equal(again["x_hat"], out["x_hat"])
    assert again["likelihoods"] == {}


@pytest.mark.parametrize("training", [False, True])
def test_quantised_latents_are_what_a_decoder_gets(model: PSIC, training: bool):
    model.train(training)
    got = model.quantised_latents(picture())
    assert torch.equal(got, model.latents(bitstream.unpack(model.compress(picture()))))
    assert torch.equal(got, got.round())
    assert got.abs().max() > 3
    assert model.backbone.training == training
    assert not got.requires_grad


def test_plain_model_knows_one_picture(model: PSIC):
    stream = model.compress(picture(), "my cat")
    model.kind = "plain"
    with torch.no_grad():
        expected = model.g_s.plain(model(picture())["y_hat"]).clamp(0, 1)
    for keyword in (None, "my cat", OWNER):
        assert torch.equal(model.decompress_tensor(stream, keyword), expected)


def test_model_can_be_copied_after_a_training_step(model: PSIC):
    model.train()(picture())["x_hat"].sum().backward()
    twin = copy.deepcopy(model)
    assert twin.compress(picture()) == model.compress(picture())
    perturb(list(twin.backbone.parameters()))
    assert twin.fingerprint() != model.fingerprint()


@pytest.mark.parametrize("used", ["source", "receiver", "both"])
def test_weights_move_between_models_whether_they_have_compressed_or_not(used: str):
    source, receiver = busy(1), busy(2)
    stream = busy(1).compress(picture())
    for name, one in (("source", source), ("receiver", receiver)):
        if used in (name, "both"):
            one.compress(picture())
    receiver.load_state_dict(source.state_dict())
    assert receiver.compress(picture()) == stream
    assert torch.equal(receiver.decompress_tensor(stream), source.decompress_tensor(stream))


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


def test_strings_of_the_tiny_model_are_not_empty():
    model, file = model_and_file()
    y_string, z_string = bitstream.unpack(file).strings
    assert len(y_string) > 50
    assert len(z_string) > 4
    x_hat = model.decompress_tensor(file)
    assert x_hat.std() > 0.05


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


def test_slot_with_another_models_secret_stays_protected():
    model, file = model_and_file()
    stream = bitstream.unpack(file)
    forged = bitstream.pack(stream._replace(slots=(keys.seal(OTHER, "my cat", bitstream.binding(stream)),)))
    got, full = model.decompress_tensor(forged, "my cat"), model.decompress_tensor(file, "my cat")
    assert (got - full).abs().mean() > 0.01
    assert model.decompress(forged, "my cat").info["version"] == "protected"


def test_slot_of_another_file_opens_nothing():
    model, file = model_and_file()
    other = bitstream.unpack(model.compress(picture(seed=5)))
    moved = bitstream.pack(other._replace(slots=bitstream.unpack(file).slots))
    assert model.opened(bitstream.unpack(moved), "my cat") != SECRET
    assert model.opened(bitstream.unpack(file), "my cat") == SECRET


def test_decoded_picture_says_its_version():
    model, file = model_and_file()
    said = {words: model.decompress(file, words).info["version"] for words in (None, "my cat", OWNER, "wrong")}
    assert said == {None: "protected", "my cat": "full", OWNER: "full", "wrong": "protected"}


def test_passphrase_of_another_model_does_not_unlock(model: PSIC):
    model.secret, model.secret_check = None, keys.check(SECRET)
    with pytest.raises(ValueError, match="does not open this model's full version"):
        model.unlock("the owner's word")
    assert model.secret is None
    model.unlock(OWNER)
    assert model.secret == SECRET


def test_files_that_may_not_open_elsewhere_say_so_once():
    ours, _ = twins("cheng2020-anchor")
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


def test_coding_and_decoding_twice_gives_the_same():
    model, file = model_and_file()
    assert model.compress(picture()) == model.compress(picture())
    assert torch.equal(model.decompress_tensor(file), model.decompress_tensor(file))
    assert busy().compress(picture()) == model.compress(picture())


def test_decoder_and_triggers_leave_streams_and_fingerprint_alone(model: PSIC):
    before, protected = model.compress(picture()), model.decompress_tensor(model_and_file()[1])
    fingerprint = model.fingerprint()
    perturb(list(model.g_s.parameters()))
    model.secret = OTHER
    assert model.compress(picture()) == before
    assert model.fingerprint() == fingerprint
    assert not torch.allclose(model.decompress_tensor(before), protected, atol=1e-2)  # old files gain it


def test_second_stage_leaves_streams_byte_identical(model: PSIC):
    before, old_full = model.compress(picture()), model.decompress_tensor(model_and_file()[1], OWNER)
    model.train().backbone.eval().requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    y_hat = model.quantised_latents(picture())
    for condition in (None, model.full_condition()) * 2:
        optimiser.zero_grad()
        model(picture(), condition, y_hat=y_hat)["x_hat"].square().mean().backward()
        optimiser.step()
    assert model.compress(picture()) == before
    assert not torch.allclose(model.decompress_tensor(before, OWNER), old_full, atol=1e-2)


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


def through_half_precision(model: PSIC) -> None:
    model.half().float()


def write_data(model: PSIC) -> None:
    next(model.backbone.entropy_bottleneck.parameters()).data.add_(0.3)  # tensors do not count such changes


@pytest.mark.parametrize(
    "change",
    [
        optimise,
        functools.partial(optimise, foreach=True),
        functools.partial(optimise, fused=True),
        step_quantiles,
        through_half_precision,
        write_data,
    ],
    ids=["adam", "foreach", "fused", "quantiles", "half", "data"],
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
        (bad(-0.01), "-0.01"),
        (bad(1.01), "1.01"),
        (picture(8, 8) * 255, "255"),
        ((picture(8, 8) * 255).to(torch.uint8), "uint8"),
        (picture(8, 8) > 0.5, "bool"),
        (picture(8, 8).to(torch.complex64), "complex64"),
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


@pytest.mark.parametrize("thing", ["photo.png", np.zeros((8, 8, 3)), None, b"raw"], ids=lambda t: type(t).__name__)
def test_what_is_no_picture_is_refused(thing: object, unchecked_shapes: None):
    with pytest.raises((TypeError, ValueError), match=type(thing).__name__):
        model_and_file()[0].compress(thing)


def test_bad_keyword_or_stream_is_refused(unchecked_shapes: None):
    model, file = model_and_file()
    with pytest.raises(ValueError, match="keyword is blank"):
        model.compress(picture(), "")
    with pytest.raises(TypeError, match="bytearray"):
        model.decompress(bytearray(file))
    with pytest.raises(BitstreamError, match="empty"):
        model.decompress(b"")


def test_tensor_of_other_precision_or_without_a_batch_axis_is_taken():
    model, _ = model_and_file()
    expected = model.compress(picture())
    assert model.compress(picture().double()) == expected
    assert model.compress(picture().requires_grad_()) == expected
    half = picture().half()
    assert model.compress(half) == model.compress(half.float())


# --- Pillow pictures -------------------------------------------------------------------------------


def rotated(image: Image.Image) -> Image.Image:
    image.getexif()[0x0112] = 6
    return image


def transparent_palette(image: Image.Image) -> Image.Image:
    palette = image.convert("P")
    palette.info["transparency"] = 3
    return palette


COLOUR = Image.fromarray((picture(33, 50)[0].permute(1, 2, 0) * 255).byte().numpy())
DEEP = Image.fromarray(np.asarray(COLOUR.convert("L")).astype(np.uint16) * 257)
PICTURES = {
    "RGB": COLOUR,
    "L": COLOUR.convert("L"),
    "1": COLOUR.convert("1"),
    "LA": COLOUR.convert("LA"),
    "RGBA": Image.merge("RGBA", (*COLOUR.split(), COLOUR.convert("L"))),
    "P": transparent_palette(COLOUR),
    "CMYK": COLOUR.convert("CMYK"),
    "I;16": DEEP,
    "EXIF": rotated(COLOUR.copy()),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_mode_makes_the_round_trip(name: str):
    model, _ = model_and_file()
    image = PICTURES[name]
    stream = model.compress(image)
    shown = model.decompress(stream)
    assert shown.size == ((33, 50) if name == "EXIF" else (50, 33))
    assert stream == model.compress(to_tensor(to_rgb(image)))
    if name in ("L", "LA", "I;16"):  # the depth is scaled, not clipped
        assert stream == model.compress(PICTURES["L"])


def test_float_picture_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="32-bit float picture has no defined white"):
        model_and_file()[0].compress(COLOUR.convert("F"))


def test_scale_indexes_are_compressais_own(model: PSIC):
    conditional = model.backbone.gaussian_conditional
    model.fingerprint()
    table = conditional.scale_table
    scales = torch.cat([table, table * 1.0001, table * 0.9999, torch.tensor([-1.0, 0.0, 1e9, torch.nan])])[None]
    theirs = type(conditional).build_indexes(conditional, scales)
    assert torch.equal(conditional.build_indexes(scales), theirs)
    assert len(theirs.unique()) == len(table)


# --- sizes -----------------------------------------------------------------------------------------


def test_file_is_as_long_as_the_likelihoods_say():
    model = busy(config=replace(CONFIG, m=64), spread=1.5)
    x = picture(512, 768)
    stream = model.compress(x)
    with torch.no_grad():
        likelihoods = model(x)["likelihoods"]
    bits = -sum(p.log2().sum().item() for p in likelihoods.values())
    header = bitstream.header_bytes(2)
    assert header <= 64
    assert 8 * len(stream) / (512 * 768) > 0.3
    assert len(stream) == pytest.approx(bits / 8 + header, rel=0.02)
    assert len(model.compress(x, "my cat")) == len(stream) + bitstream.CHUNK_BYTES + keys.SLOT_BYTES


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
