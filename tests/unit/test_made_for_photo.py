"""Shields made for one photo, carried or sealed: what the file says, who gets which picture, and what is refused."""

import functools
from collections import Counter

import pytest
import torch
from models import awaken, picture
from mutants import mutants, outcome

from psic_core import bitstream, keys
from psic_core.bitstream import BitstreamError
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.models.delta import MAX_BYTES, band, cosines, energy, enlarged, from_code, hiding, reduced, to_code
from psic_core.models.images import to_pil
from psic_core.models.vlp import Target, load_target
from psic_core.training.search import CARRIED, MISLED, _adjusted, largest, search

SIZE = (49, 62)  # above the reading side of 32, and copies of it are rounded otherwise
OWNER = "the owner's words"


@functools.cache
def model() -> PSIC:
    torch.manual_seed(0)
    config = CodecConfig(n=8, m=12, dim=16, hidden=8, reading_side=32)
    fresh = PSIC.build(config, keys.secret(OWNER)).eval()
    with torch.no_grad():
        fresh.backbone.g_a[-1].weight *= 30
        fresh.g_s.stages[-1][-1].bias.fill_(0.5)
    return awaken(fresh)


@functools.cache
def reader() -> Target:
    return load_target("tiny")


@functools.cache
def file(adapt: str | None, *keywords: str) -> bytes:
    return model().compress(picture(*SIZE), keywords or None, adapt=adapt, target=reader())


def decoded(data: bytes, keyword: str | None = None) -> torch.Tensor:
    return model().decompress_tensor(data, keyword)


def test_a_carried_shield_changes_the_protected_version_alone():
    trained, carried = file(None, "my cat"), file("carried", "my cat")
    assert bitstream.unpack(carried).strings == bitstream.unpack(trained).strings
    assert torch.equal(decoded(carried, "my cat"), decoded(trained, "my cat"))
    assert torch.equal(decoded(carried, OWNER), decoded(trained, OWNER))
    change = decoded(carried) - decoded(carried, "my cat")
    assert 40 < -10 * change.square().mean().log10() < 48
    assert torch.equal(decoded(carried, "my dog").round(decimals=3), decoded(carried).round(decimals=3))


def test_a_sealed_shield_lies_in_the_picture_and_only_a_keyword_takes_it_out():
    sealed = file("sealed", "my cat", "my dog")
    stream = bitstream.unpack(sealed)
    coded = model().g_s.plain(model().latents(stream))[..., : SIZE[0], : SIZE[1]].clamp(0, 1)
    for stranger in (None, "my bird", OWNER):  # its owner neither
        assert torch.equal(decoded(sealed, stranger), coded)
    full = decoded(sealed, "my cat")
    assert torch.equal(full, decoded(sealed, "my dog"))
    plain = decoded(file(None, "my cat"), "my cat")
    x = picture(*SIZE)
    assert not torch.equal(coded, plain), "the change is in the picture"
    assert (reduced(full, 32) - reduced(x, 32)).norm() < (reduced(coded, 32) - reduced(x, 32)).norm()
    assert model().decompress(sealed, "my cat").info["version"] == "full"
    assert model().decompress(sealed, OWNER).info["version"] == "protected"
    nobody = file("sealed")
    assert bitstream.unpack(nobody).chunks == ((bitstream.SEALED, b""),)
    assert bitstream.unpack(nobody).strings == stream.strings, "one seed, one file"


@pytest.mark.parametrize("adapt", ["carried", "sealed"])
def test_a_shield_is_bound_to_its_file(adapt):
    given = bitstream.unpack(file(adapt, "my cat"))
    other = bitstream.unpack(model().compress(picture(*SIZE, seed=5)))
    moved = bitstream.pack(other._replace(slots=given.slots, chunks=given.chunks))
    if adapt == "carried":
        with pytest.raises(BitstreamError, match="another file"):
            decoded(moved)
    assert bitstream.describe(moved)["shield"] == adapt
    assert model().decompress(file(adapt, "my cat"), "my cat").info["version"] == "full"
    key = keys.open_slot(given.slots[0], "my cat", bitstream.binding(given))
    forged = given._replace(chunks=((bitstream.SEALED, keys.seal_code(key, b"x", b"another file")),))
    with pytest.raises(BitstreamError, match="sealed code"):
        decoded(bitstream.pack(forged), "my cat")


@pytest.mark.slow
@pytest.mark.parametrize("adapt", ["carried", "sealed"])
def test_a_thousand_altered_files_are_refused_or_right(adapt):
    data = file(adapt, "my cat")
    stream = bitstream.unpack(data)
    keyword = "my cat" if adapt == "sealed" else None
    coded, whole = model().latents(stream), model().version_of(stream, keyword).adapted
    found = Counter(outcome(model(), mutant, coded, keyword, whole) for mutant in mutants(data, 1000))
    assert set(found) == {"refused", "same latents"}


def test_two_shields_or_a_long_one_are_refused():
    given = bitstream.unpack(file("carried"))
    for chunks in (given.chunks * 2, ((bitstream.CARRIED, bytes(bitstream.MAX_CHUNK + 1)),)):
        with pytest.raises(BitstreamError):
            bitstream.pack(given._replace(chunks=chunks))


def test_a_code_says_what_was_found():
    size = (160, 240)
    signs = largest(torch.randn(1, 3, *band(size), generator=torch.Generator().manual_seed(0)), 1800)
    code = to_code(signs, 14.5, 0.2)
    triggers, delta = from_code(code, size)
    assert triggers == pytest.approx(0.2)
    assert torch.allclose(delta, cosines(signs * 14.5 / 255, size), atol=1e-6)
    assert float(delta.square().sum()) == pytest.approx(1800 * (14.5 / 255) ** 2, rel=1e-4), "orthonormal"
    assert len(code) < 1500
    for wrong in (b"", code[:-1], code[:100], code + b"x", code[:1] + b"\xff" * 4 + code[5:]):
        with pytest.raises(BitstreamError):
            from_code(wrong, size)
    with pytest.raises(BitstreamError):
        from_code(code, (32, 32))
    assert from_code(to_code(signs * 0, 14.5), size).delta.abs().max() == 0


def test_a_code_that_would_not_fit_a_chunk_is_refused():
    size = (160, 16000)
    signs = largest(torch.randn(1, 3, *band(size), generator=torch.Generator().manual_seed(0)), 2900)
    with pytest.raises(ValueError, match=f"{MAX_BYTES} are the most"):
        to_code(signs, 10)


def test_the_search_turns_a_reader_round_for_little():
    x = picture(32, 48, seed=3)
    signs, amplitude = search(x, x, reader(), steps=12)

    def shown(signs):
        return x + hiding(x) * cosines(signs * amplitude / 255, (32, 48))

    changed, noise = shown(signs), shown(largest(torch.randn_like(signs), int(signs.abs().sum())))
    assert CARRIED[0] < float(energy(changed - x, x)) < CARRIED[1]
    before, after, null = (reader().encode_image(v.clamp(0, 1)) for v in (x, changed, noise))
    assert 1 - float((before * after).sum()) > 10 * (1 - float((before * null).sum()))
    again, _ = search(x, x, reader(), steps=12)
    assert torch.equal(signs, again)


def test_the_search_gives_less_strength_where_readers_are_misled():
    assert _adjusted(1.0, MISLED - 0.1, CARRIED) < 1 < _adjusted(1.0, MISLED + 0.1, CARRIED)
    assert _adjusted(CARRIED[1], 1.0, CARRIED) == CARRIED[1]


def test_a_small_picture_is_protected_at_its_own_size():
    data = model().compress(picture(20, 24), "my cat", adapt="carried", target=reader())
    assert to_pil(decoded(data)).size == (24, 20)
    assert not torch.equal(decoded(data), decoded(data, "my cat"))
    delta = model().version_of(bitstream.unpack(data), None).adapted.delta
    assert delta.shape[-2:] == enlarged(delta, (20, 24)).shape[-2:] == (20, 24)
