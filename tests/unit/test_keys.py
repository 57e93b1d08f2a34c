"""The keyword: secrets, conditions, slots, and the algebra of re-keying."""

import hashlib
import os

import pytest
import torch
from torch import nn

from psic_core import keys

SECRET = bytes(range(16))
OTHER = bytes(range(16, 32))
SLOT = bytes.fromhex(  # seal(SECRET, "my cat", b"salted"): files out there hold such slots
    "73616c746564df78db120912eb267e4b12abc446b292d3ef118dfb34b30be423bb505a71522baa34"
)


class TinyModel(nn.Module):
    """A stand-in for PSIC: trigger MLPs of different sizes, the last layer used twice."""

    def __init__(self, dims: tuple[int, ...] = (8, 8, 33), secret: bytes | None = SECRET) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, 5) for dim in dims)
        self.secret = secret

    def key_layers(self) -> list[nn.Linear]:
        return [*self.layers, self.layers[-1]]

    def answers(self, secret: bytes) -> list[torch.Tensor]:
        return [layer(keys.condition(secret, layer.in_features)) for layer in self.layers]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


# --- secret ---------------------------------------------------------------------------------------


def test_secret_is_the_one_stored_here():
    assert keys.secret("correct horse battery staple").hex() == "c4a5a28836123ca05b5eb75b0ffe07b5"


@pytest.mark.parametrize(("one", "two"), [("\ufb01sh", "fish"), ("caf\u00e9", "cafe\u0301"), ("\uff21", "A")])
def test_passphrases_that_look_equal_are_equal(one: str, two: str):
    assert one != two
    assert keys.secret(one) == keys.secret(two)


def test_case_and_spaces_of_a_passphrase_count():
    secrets = {keys.secret(words) for words in ("cat", "Cat", "cat ", "ca t")}
    assert len(secrets) == 4
    assert all(len(s) == keys.SECRET_BYTES for s in secrets)


@pytest.mark.parametrize(("words", "says"), [("", "empty"), ("\ud800", "not valid Unicode")])
def test_bad_passphrase_is_refused(words: str, says: str):
    with pytest.raises(ValueError, match=says):
        keys.secret(words)


# --- condition ------------------------------------------------------------------------------------


def test_condition_is_the_one_stored_here():
    stored = [0.2365110218524933, 0.06531526893377304, -0.07865335792303085]
    stored += [0.5866178870201111, 0.7677822113037109]
    assert torch.allclose(keys.condition(SECRET, 5), torch.tensor(stored), rtol=0, atol=1e-7)


def test_condition_does_not_touch_the_global_generator():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first = keys.condition(SECRET, 64)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(keys.condition(SECRET, 64), first)


@pytest.mark.parametrize("dim", [2, 3, 7, 64, 513])
def test_condition_is_a_float32_unit_vector(dim: int):
    c = keys.condition(SECRET, dim)
    assert c.shape == (dim,)
    assert c.dtype == torch.float32
    assert c.double().norm().item() == pytest.approx(1, abs=1e-6)


def test_conditions_of_random_secrets_are_nearly_orthogonal():
    dim, count = 64, 400
    vectors = [keys.condition(hashlib.md5(bytes([i % 256, i // 256])).digest(), dim) for i in range(count)]
    c = torch.stack(vectors).double()
    cosines = (c @ c.T)[torch.triu(torch.ones(count, count), 1).bool()]
    # Uniform on the sphere: cosines have mean 0 and variance 1 / dim, coordinates likewise.
    assert cosines.mean().abs() < 0.002
    assert cosines.std().item() == pytest.approx(dim**-0.5, rel=0.03)
    assert cosines.abs().max() < 0.75
    assert c.mean(0).abs().max() < 5 / (count * dim) ** 0.5
    assert c.var().item() == pytest.approx(1 / dim, rel=0.05)


@pytest.mark.parametrize(
    ("secret", "dim", "says"),
    [
        (b"", 8, "16 bytes"),
        (bytes(15), 8, "has 15"),
        (bytes(17), 8, "has 17"),
        (SECRET, 1, "dim is 1"),
    ],
)
def test_bad_condition_is_refused(secret: bytes, dim: int, says: str):
    with pytest.raises(ValueError, match=says):
        keys.condition(secret, dim)


# --- slots ----------------------------------------------------------------------------------------


def test_slot_is_the_one_stored_here():
    assert keys.seal(SECRET, "my cat", b"salted") == SLOT
    assert keys.open_slot(SLOT, "my cat") == SECRET


def test_fresh_slots_differ_and_open():
    one, two = (keys.seal(SECRET, "\ufb01sh") for _ in range(2))
    assert len(one) == len(two) == keys.SLOT_BYTES == 40
    assert one[: keys.SALT_BYTES] != two[: keys.SALT_BYTES]
    assert one != two
    assert keys.open_slot(one, "fish") == keys.open_slot(two, "fish") == SECRET
    assert SECRET not in one


@pytest.mark.parametrize("keyword", ["My cat", "my cat ", "my dog", ""])
def test_wrong_keyword_opens_nothing(keyword: str):
    assert keys.open_slot(SLOT, keyword) is None


def test_forged_slot_with_a_right_checksum_opens_nothing():
    body = bytes([*SLOT[:10], SLOT[10] ^ 1, *SLOT[11:38]])
    forged = body + keys._crc16(body)
    assert keys.slot_intact(forged)
    assert keys.open_slot(forged, "my cat") is None


@pytest.mark.parametrize("flip", [0x01, 0x80, 0x5A, 0xFF])
def test_every_damaged_byte_is_told_from_a_wrong_keyword(flip: int):
    for position in range(keys.SLOT_BYTES):
        damaged = bytearray(SLOT)
        damaged[position] ^= flip
        assert not keys.slot_intact(bytes(damaged))
        with pytest.raises(ValueError, match="damaged"):
            keys.open_slot(bytes(damaged), "my cat")


@pytest.mark.parametrize("slot", [b"", SLOT[:-1], SLOT + b"\0"])
def test_slot_of_wrong_length_is_refused(slot: bytes):
    assert not keys.slot_intact(slot)
    with pytest.raises(ValueError, match=f"this one has {len(slot)}"):
        keys.open_slot(slot, "my cat")


def test_bad_seal_is_refused():
    with pytest.raises(ValueError, match="keyword is empty"):
        keys.seal(SECRET, "")
    with pytest.raises(ValueError, match="secret has 16"):
        keys.seal(SECRET[:8], "my cat")
    with pytest.raises(ValueError, match="salt has 5"):
        keys.seal(SECRET, "my cat", bytes(5))


# --- re-keying ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", range(20))
def test_rekeyed_model_answers_the_new_secret_as_the_old(trial: int):
    torch.manual_seed(trial)
    old, new = os.urandom(16), os.urandom(16)
    model = TinyModel(secret=old)
    expected, biases = model.answers(old), [layer.bias.clone() for layer in model.layers]
    keys.rekey(model, old, new)
    assert model.secret == new
    for got, want in zip(model.answers(new), expected, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-6)
    for got, want in zip(model.answers(old), expected, strict=True):
        assert not torch.allclose(got, want, atol=1e-3)
    for layer, bias in zip(model.layers, biases, strict=True):
        assert torch.equal(layer(torch.zeros(layer.in_features)), bias)


def test_rekeying_is_an_orthogonal_reflection():
    layer, before = (model := TinyModel((16,))).layers[0], TinyModel((16,)).layers[0]
    with torch.no_grad():
        layer.weight.copy_(before.weight)
    keys.rekey(model, SECRET, OTHER)
    gram = layer.weight @ layer.weight.T
    assert torch.allclose(gram, before.weight @ before.weight.T, atol=1e-5)
    # What is orthogonal to both secrets' vectors is answered as before.
    plane = torch.linalg.qr(torch.stack([keys.condition(s, 16) for s in (SECRET, OTHER)]).T)[0]
    x = torch.randn(16)
    x = x - plane @ (plane.T @ x)
    assert torch.allclose(layer.weight @ x, before.weight @ x, atol=1e-5)


def test_rekeying_there_and_back_restores_the_weights():
    model = TinyModel()
    before = weights(model)
    keys.rekey(model, SECRET, OTHER)
    assert not torch.allclose(model.layers[0].weight, before[0], atol=1e-3)
    keys.rekey(model, OTHER, SECRET)
    for got, want in zip(weights(model), before, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-6)


def test_rekeying_to_the_same_secret_changes_no_bit():
    model = TinyModel()
    before = weights(model)
    keys.rekey(model, SECRET, SECRET)
    assert all(map(torch.equal, weights(model), before))
    assert model.secret == SECRET


def test_rekeying_works_in_place_and_leaves_gradients_on():
    model = TinyModel()
    weight = model.layers[0].weight
    address = weight.data_ptr()
    keys.rekey(model, SECRET, OTHER)
    assert model.layers[0].weight is weight
    assert weight.data_ptr() == address
    assert weight.requires_grad
    assert weight.is_leaf


def test_rekeying_needs_the_models_own_secret():
    model = TinyModel()
    before = weights(model)
    with pytest.raises(ValueError, match="not this model's"):
        keys.rekey(model, OTHER, SECRET)
    with pytest.raises(ValueError, match="has 3"):
        keys.rekey(model, SECRET, b"abc")
    assert all(map(torch.equal, weights(model), before))
    assert model.secret == SECRET


def test_model_without_known_secret_is_rekeyed_and_bad_layer_leaves_it_whole():
    model = TinyModel(secret=None)
    expected = model.answers(OTHER)
    keys.rekey(model, OTHER, SECRET)
    assert model.secret == SECRET
    assert all(torch.allclose(g, w, atol=1e-6) for g, w in zip(model.answers(SECRET), expected, strict=True))
    bad = TinyModel((8, 1))
    before = weights(bad)
    with pytest.raises(ValueError, match="dim is 1"):
        keys.rekey(bad, SECRET, OTHER)
    assert all(map(torch.equal, weights(bad), before))


def test_model_that_keeps_no_secret_gets_none():
    model = TinyModel()
    del model.secret
    keys.rekey(model, SECRET, OTHER)
    assert not hasattr(model, "secret")
