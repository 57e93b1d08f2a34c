"""Checkpoints: round trips, what is left out, and files that are refused without being unpickled."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import awaken
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from psic_core import keys
from psic_core.bitstream import BitstreamError
from psic_core.codec import PSIC
from psic_core.config import CodecConfig
from psic_core.models import entropy
from psic_core.training import checkpoints, files
from psic_core.training.checkpoints import find_checkpoint, load_checkpoint, read_card, save_checkpoint

TINY = CodecConfig(n=8, m=12, quality=7, dim=16, hidden=8)
X = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> PSIC:
    """A PSIC whose every tensor is random, triggers too."""
    torch.manual_seed(0)
    model = PSIC.build(TINY, keys.secret("mine"))
    awaken(model, scale=1)
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
    return model.eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some" / "where" / "psic-q7.safetensors"


def learned(model: PSIC) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in model.named_parameters() if not (model.kind == "plain" and "triggers" in name)
    }


# --- round trips ------------------------------------------------------------------------------------


def test_float32_comes_back_exactly(model: PSIC, path: Path):
    save_checkpoint(model, path, {"steps": 3}, publish_secret=True)
    again = load_checkpoint(path)
    assert all(torch.equal(tensor, learned(model)[name]) for name, tensor in learned(again).items())
    assert (again.config, again.kind, again.secret, again.card) == (TINY, "psic", keys.secret("mine"), {"steps": 3})
    assert not again.training
    assert again.fingerprint() == model.fingerprint()
    assert again.secret_check == keys.check(keys.secret("mine"))
    stream = model.compress(X, "my cat")
    assert again.compress(X) == model.compress(X)
    for keyword in (None, "my cat", "mine", "wrong"):
        assert torch.equal(again.decompress_tensor(stream, keyword), model.decompress_tensor(stream, keyword))


def test_half_comes_back_rounded(model: PSIC, path: Path):
    save_checkpoint(model, path, half=True, publish_secret=True)
    again = load_checkpoint(path)
    for name, tensor in learned(again).items():
        rounded = learned(model)[name] if ".cltg." in name else learned(model)[name].half().float()
        assert torch.equal(tensor, rounded), name
    y_hat = model.quantised_latents(X)
    with torch.no_grad():  # the conditions' layers are not rounded, so that the key's triggers stay zero
        condition, again.secret = again.full_condition(), None  # who holds no secret goes through the triggers
        assert torch.allclose(again.synthesize(y_hat, condition), again.g_s.plain(y_hat), atol=1e-6)
    assert all(tensor.dtype == torch.float32 for tensor in again.state_dict().values() if tensor.is_floating_point())
    assert again.fingerprint() != model.fingerprint()
    assert torch.allclose(again(X)["x_hat"], model(X)["x_hat"], atol=0.02)


def test_tables_are_stored_as_whole_numbers_and_never_made_again(
    model: PSIC, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(model, path)
    tables = {name: t for name, t in load_file(path).items() if name.startswith("tables.")}
    assert len(tables) == 6
    assert {t.dtype for t in tables.values()} == {torch.int32}
    assert sum(t.numel() * 4 for t in tables.values()) < 80_000
    monkeypatch.setattr(entropy, "make_tables", lambda module: pytest.fail("made again"))
    again = load_checkpoint(path)
    assert again.compress(X) == model.compress(X)
    save_checkpoint(again, tmp_path / "again.safetensors")
    assert {n: t.tolist() for n, t in tables.items()} == {
        n: t.tolist() for n, t in load_file(tmp_path / "again.safetensors").items() if n in tables
    }


def test_other_tables_are_another_fingerprint(model: PSIC, path: Path):
    save_checkpoint(model, path)
    tensors, header = load_file(path), {"psic": json.dumps(read_card(path))}
    cdf = tensors["tables.gaussian_conditional.cdf"]
    cdf[1] += 1
    save_file(tensors, path, header)
    again = load_checkpoint(path)
    assert again.fingerprint() != model.fingerprint()
    with pytest.raises(BitstreamError, match="load the checkpoint"):
        again.decompress(model.compress(X))
    cdf[1] = 65536  # does not rise
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match="do not rise from 0 to 65536"):
        load_checkpoint(path)
    del tensors["tables.gaussian_conditional.cdf"]
    save_file(tensors, path, header)
    with pytest.raises(ValueError, match="tables of the range coder are incomplete"):
        load_checkpoint(path)


@pytest.mark.parametrize("where", [0.5, 0.9999])
def test_a_changed_byte_is_noticed(where: float, model: PSIC, path: Path):
    save_checkpoint(model, path)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    for read in (load_checkpoint, read_card):
        with pytest.raises(ValueError, match="its SHA-256 is wrong; fetch it again"):
            read(path)


def test_a_full_disk_is_an_os_error(model: PSIC, path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="cannot write .*No space left"):
        save_checkpoint(model, path)


def test_the_plain_codec_inside_is_the_model_without_its_triggers(model: PSIC, path: Path):
    save_checkpoint(model, path, publish_secret=True)
    plain = load_checkpoint(path, plain=True)
    assert plain.kind == "plain"
    file = plain.compress(X)
    assert file == model.compress(X)
    assert torch.equal(plain.decompress_tensor(file), model.decompress_tensor(file, "mine"))
    free = PSIC.build(replace(model.config, anchored=False))
    save_checkpoint(free, path)
    with pytest.raises(ValueError, match="is not anchored: without its triggers it is no plain codec"):
        load_checkpoint(path, plain=True)


def test_the_secret_is_stored_only_when_published(model: PSIC, path: Path):
    save_checkpoint(model, path)
    assert load_checkpoint(path).secret is None
    raw = path.read_bytes()
    assert keys.secret("mine") not in raw
    assert keys.secret("mine").hex().encode() not in raw
    save_checkpoint(model, path, publish_secret=True)
    assert load_checkpoint(path).secret == keys.secret("mine")


def test_without_its_secret_a_model_decodes_full_by_the_passphrase_only(model: PSIC, path: Path):
    save_checkpoint(model, path)
    again, stream = load_checkpoint(path), model.compress(X)
    assert torch.equal(again.decompress_tensor(stream, "mine"), model.decompress_tensor(stream, "mine"))
    assert again.compress(X) == stream
    with pytest.raises(ValueError, match="does not hold its secret"):
        again.compress(X, "my cat")


# --- shipped names ----------------------------------------------------------------------------------


def test_shipped_checkpoints_are_found_by_name_and_listed(model: PSIC, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoints, "data_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="'psic-q2'; shipped: none"):
        load_checkpoint("psic-q2")
    for name in ("psic-q2", "plain-q2", "lite-clip"):
        save_checkpoint(model, tmp_path / "checkpoints" / f"{name}.safetensors")
    assert find_checkpoint("psic-q2") == tmp_path / "checkpoints" / "psic-q2.safetensors"
    assert load_checkpoint("psic-q2").config == TINY
    with pytest.raises(FileNotFoundError, match="'psic-q9'; shipped: plain-q2, psic-q2$"):
        load_checkpoint("psic-q9")


# --- files that are refused -------------------------------------------------------------------------


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_disguise_is_refused_and_never_run(kind: str, tmp_path: Path):
    path, sprung = tmp_path / "psic-q2.safetensors", tmp_path / "sprung"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"model": Trap(sprung)}, path)
    with pytest.raises(ValueError, match="is no PSIC checkpoint"):
        load_checkpoint(path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works


def rewrite(path: Path, **change: object) -> None:
    """Change the header of a checkpoint; ``None`` drops a field."""
    header = read_card(path) | change
    kept = {k: v for k, v in header.items() if v is not None}
    save_file(load_file(path), path, {"psic": json.dumps(kept)})


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": None}, "is no PSIC checkpoint"),
        ({"kind": "encrypted"}, "encrypted"),
        ({"secret": "zz"}, "is no PSIC checkpoint"),
        ({"secret": "00ff"}, "2 bytes"),
        ({"config": {"n": 8, "colour": "red"}}, "does not fit CodecConfig"),  # what is unknown is passed over
        ({"config": {"n": "eight"}}, "is no PSIC checkpoint"),
        ({"config": {"n": -8}}, "is no PSIC checkpoint"),
        ({"config": {"n": 16, "m": 12, "dim": 16, "hidden": 8}}, "does not fit"),
        ({"config": {"architecture": "jpeg"}}, "architecture 'jpeg'"),
    ],
)
def test_headers_that_lie_are_refused(change: dict, says: str, model: PSIC, path: Path):
    save_checkpoint(model, path)
    rewrite(path, **change)
    with pytest.raises(ValueError, match=says):
        load_checkpoint(path)


def test_a_missing_or_foreign_tensor_is_named(model: PSIC, path: Path):
    save_checkpoint(model, path)
    tensors, header = load_file(path), {"psic": json.dumps(read_card(path))}
    name = "g_s.triggers.0.cltg.w_d.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, path, header)
    with pytest.raises(ValueError, match=name):
        load_checkpoint(path)
    save_file(tensors | {"backdoor": torch.zeros(1)}, path, header)
    with pytest.raises(ValueError, match="backdoor"):
        load_checkpoint(path)
