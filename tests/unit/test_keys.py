"""The keyword: secrets, conditions, slots, and the algebra of re-keying."""

import os

import pytest
import torch
from torch import nn

from psic_core import keys
from psic_core.config import PUBLIC_PASSPHRASE, PUBLIC_SECRET

SECRET = bytes(range(16))
OTHER = bytes(range(16, 32))
BOUND = b"the header of a file"


@pytest.fixture(autouse=True)
def real_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other tests do without."""
    monkeypatch.setitem(keys.COSTS, 1, 2**17)


SLOT = bytes.fromhex(  # seal(SECRET, "my cat", BOUND) with the salt "salted" and zeros: files out there hold such slots
    "0173616c74656400000000000000000000eadd53015eb49f4fe982f6657150346b8963cef0c53ddf5d5e519d421571a4c6"
)


class TinyModel(nn.Module):
    """A stand-in for PSIC: trigger MLPs of different sizes."""

    def __init__(self, dims: tuple[int, ...] = (8, 8, 33), secret: bytes | None = SECRET) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, 5) for dim in dims)
        self.secret = secret

    def key_layers(self) -> list[nn.Linear]:
        return list(self.layers)

    def answers(self, secret: bytes) -> list[torch.Tensor]:
        return [layer(keys.condition(secret, layer.in_features)) for layer in self.layers]


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


# --- secret ---------------------------------------------------------------------------------------


def test_secret_is_the_one_stored_here():
    assert keys.secret("correct horse battery staple").hex() == "2bc9263f67fd04ae964e64053ea59924"


@pytest.mark.parametrize(("one", "two"), [("\ufb01sh", "fish"), ("caf\u00e9", "cafe\u0301"), ("\uff21", "A")])
def test_passphrases_that_look_equal_are_equal(one: str, two: str):
    assert one != two
    assert keys.secret(one) == keys.secret(two)


@pytest.mark.parametrize(("words", "says"), [("", "blank"), (" \t\u3000", "blank"), ("\ud800", "not valid Unicode")])
def test_bad_passphrase_is_refused(words: str, says: str):
    with pytest.raises(ValueError, match=says):
        keys.secret(words)


# --- condition ------------------------------------------------------------------------------------


def test_condition_is_the_one_stored_here():
    stored = [0.2365110218524933, 0.06531526893377304, -0.07865335792303085]
    stored += [0.5866178870201111, 0.7677822113037109]
    assert torch.allclose(keys.condition(SECRET, 5), torch.tensor(stored), rtol=0, atol=1e-7)


@pytest.mark.parametrize("dim", [2, 3, 7, 64, 513])
def test_condition_is_a_float32_unit_vector(dim: int):
    c = keys.condition(SECRET, dim)
    assert c.shape == (dim,)
    assert c.dtype == torch.float32
    assert c.double().norm().item() == pytest.approx(1, abs=1e-6)


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


def test_slot_is_the_one_stored_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys.os, "urandom", lambda n: b"salted" + bytes(n - 6))
    assert keys.seal(SECRET, "my cat", BOUND) == SLOT
    assert keys.open_slot(SLOT, "my cat", BOUND) == SECRET


def test_costs_meet_owasps_minimum():
    """A guess takes 128 MB, as measured by scrypt's own definition: 128 N r bytes."""
    assert 128 * keys.COSTS[SLOT[0]] * 8 >= 2**27
    assert len(SLOT[1:17]) == keys.SALT_BYTES == 16


def test_fresh_slots_differ_and_open():
    one, two = (keys.seal(SECRET, "\ufb01sh", BOUND) for _ in range(2))
    assert len(one) == len(two) == keys.SLOT_BYTES == 49
    assert one[:17] != two[:17]
    assert keys.open_slot(one, "fish", BOUND) == keys.open_slot(two, "fish", BOUND) == SECRET
    assert SECRET not in one


@pytest.mark.parametrize("keyword", ["My cat", "my cat ", "my dog"])
def test_wrong_keyword_opens_nothing(keyword: str):
    assert keys.open_slot(SLOT, keyword, BOUND) is None


def test_slot_opens_in_its_own_file_only():
    assert keys.open_slot(SLOT, "my cat", b"the header of another file") is None


@pytest.mark.parametrize("position", [1, 16, 17, 40, 48])
def test_forged_slot_opens_nothing(position: int):
    forged = bytearray(SLOT)
    forged[position] ^= 1
    assert keys.open_slot(bytes(forged), "my cat", BOUND) is None


@pytest.mark.parametrize(
    ("slot", "says"),
    [(b"", "has 0"), (SLOT[:-1], "has 48"), (SLOT + b"\0", "has 50"), (b"\7" + SLOT[1:], "derivation 7")],
)
def test_slot_of_another_kind_is_refused(slot: bytes, says: str):
    with pytest.raises(ValueError, match=says):
        keys.open_slot(slot, "my cat", BOUND)


def test_bad_seal_is_refused():
    for blank in ("", " ", "\n"):
        with pytest.raises(ValueError, match="keyword is blank"):
            keys.seal(SECRET, blank, BOUND)
        with pytest.raises(ValueError, match="keyword is blank"):
            keys.open_slot(SLOT, blank, BOUND)
    with pytest.raises(ValueError, match="secret has 16"):
        keys.seal(SECRET[:8], "my cat", BOUND)


def test_public_secret_is_the_public_passphrases():
    assert keys.secret(PUBLIC_PASSPHRASE) == PUBLIC_SECRET


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


def test_rekeying_needs_the_models_own_secret():
    model = TinyModel()
    before = weights(model)
    with pytest.raises(ValueError, match="not this model's"):
        keys.rekey(model, OTHER, SECRET)
    with pytest.raises(ValueError, match="has 3"):
        keys.rekey(model, SECRET, b"abc")
    assert all(map(torch.equal, weights(model), before))
    assert model.secret == SECRET


def test_model_without_known_secret_is_rekeyed():
    model = TinyModel(secret=None)
    expected = model.answers(OTHER)
    keys.rekey(model, OTHER, SECRET)
    assert model.secret == SECRET
    assert all(torch.allclose(g, w, atol=1e-6) for g, w in zip(model.answers(SECRET), expected, strict=True))
