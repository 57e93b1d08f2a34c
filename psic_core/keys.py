"""The keyword: from words to the condition that makes the decoder give the *full* version.

Two levels::

    owner's passphrase --scrypt--> secret (16 bytes) --SHAKE-256--> c, a unit vector in R^dim
    reader's keyword   --scrypt--> slot key, which opens a slot of the file --> the same secret

Section 3.1 of the paper promises a "customizable condition (e.g. keywords)" sent with the stream and
leaves open how; this construction is ours. It controls which picture a decoder shows. It is no promise of
secrecy: whoever holds a decoder *and* its secret sees everything coded with that encoder, and a
weak keyword can be guessed offline.
"""

import hashlib
import os
import unicodedata
from typing import Any

import numpy as np
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from jaxtyping import Float
from torch import Tensor, nn

SECRET_BYTES = 16
SALT_BYTES = 16
SLOT_BYTES = 49  # identifier 1 + salt 16 + sealed secret 16 + Poly1305 tag 16

#: scrypt's cost N by the identifier that a slot names; r = 8, p = 1. OWASP's minimum: 128 MB and 0.3 s a guess.
COSTS = {1: 2**17}
_KDF = 1  # of new slots

_SECRET_SALT = b"psic_core.keys.secret.v2"
_CHECK_LABEL = b"psic_core.keys.check.v1"
_CONDITION_LABEL = b"psic_core.keys.condition.v1"
_SLOT_LABEL = b"psic_core.keys.slot.v2"
_CODE_LABEL = b"psic_core.keys.code.v1"
_NONCE = bytes(12)  # constant: the salt gives every slot a key of its own


def secret(passphrase: str) -> bytes:
    """Derive a model's secret from its owner's passphrase.

    Args:
        passphrase: any text that is not blank; NFKC-normalised, so that equal-looking words are equal.
            Capital letters and spaces count.

    Returns:
        16 bytes, the same on every machine: scrypt (RFC 7914; n = 2**17, r = 8, p = 1).

    Raises:
        ValueError: the passphrase is blank or not valid text.
    """
    return _scrypt(_normalised(passphrase, "passphrase"), _SECRET_SALT, SECRET_BYTES, 2**17)


def check(secret: bytes) -> bytes:
    """8 bytes that tell whether a secret is a model's, for models that do not hold theirs.

    They help a guesser no more than the model itself does, whose triggers vanish at the key.
    """
    return hashlib.sha256(_CHECK_LABEL + secret).digest()[:8]


def condition(secret: bytes, dim: int) -> Float[Tensor, " dim"]:
    """Turn a secret into the unit vector c that conditions the decoder on *full*.

    SHAKE-256 gives uniform numbers, Box-Muller makes them normal, and a normalised normal vector
    is uniform on the sphere: the vectors of two secrets are nearly orthogonal (cosine about
    1 / sqrt(dim)). No framework's random generator is involved, so the vector outlives them all.

    Args:
        secret: 16 bytes, as from `secret`.
        dim: length of the vector, at least 2.

    Returns:
        float32 on the CPU, of norm 1. Computed in float64, so that platforms whose ``log`` and
        ``cos`` differ in the last bit agree after rounding.

    Raises:
        ValueError: wrong length of the secret, or dim < 2.
    """
    _check_secret(secret)
    if dim < 2:
        raise ValueError(f"dim is {dim}; a condition needs at least 2 dimensions")
    pairs = (dim + 1) // 2
    digest = hashlib.shake_256(_CONDITION_LABEL + secret).digest(16 * pairs)
    # The upper 53 bits fill a float64 exactly; the half keeps log(0) away.
    uniform = ((np.frombuffer(digest, dtype="<u8") >> 11).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[0::2])), 2 * np.pi * uniform[1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:dim]
    return torch.from_numpy((normal / np.linalg.norm(normal)).astype(np.float32))


def seal(secret: bytes, keyword: str, bound: bytes) -> bytes:
    """Seal a model's secret under a file's keyword, for this file alone.

    The slot is ``identifier | salt | ChaCha20-Poly1305(secret)``; the key is scrypt(keyword, salt), and the cipher
    authenticates `bound` besides.

    Args:
        secret: 16 bytes, as from `secret`.
        keyword: any text that is not blank, NFKC-normalised.
        bound: `psic_core.bitstream.binding` of the file: in another file the slot opens nothing.

    Returns:
        `SLOT_BYTES` bytes.

    Raises:
        ValueError: wrong length of the secret, or a blank or invalid keyword.
    """
    _check_secret(secret)
    salt = os.urandom(SALT_BYTES)  # a fresh one for every slot, because the nonce is constant
    cipher = ChaCha20Poly1305(_scrypt(_normalised(keyword, "keyword"), salt, 32, COSTS[_KDF]))
    return bytes([_KDF]) + salt + cipher.encrypt(_NONCE, secret, _SLOT_LABEL + bound)


def open_slot(slot: bytes, keyword: str, bound: bytes) -> bytes | None:
    """Open a keyword slot.

    Args:
        slot: 49 bytes, as from `seal`.
        keyword: the words to try.
        bound: `psic_core.bitstream.binding` of the file that holds the slot.

    Returns:
        The secret (16 bytes), or None when the keyword is not the slot's, or the slot not the file's.

    Raises:
        ValueError: the slot has a wrong length or an unknown KDF, or the keyword is blank or not valid text.
    """
    if len(slot) != SLOT_BYTES:
        raise ValueError(f"a keyword slot has {SLOT_BYTES} bytes, this one has {len(slot)}")
    if slot[0] not in COSTS:
        raise ValueError(f"the keyword slot names key derivation {slot[0]}, which this code lacks: update psic_core")
    salt, sealed = slot[1 : 1 + SALT_BYTES], slot[1 + SALT_BYTES :]
    cipher = ChaCha20Poly1305(_scrypt(_normalised(keyword, "keyword"), salt, 32, COSTS[slot[0]]))
    try:
        return cipher.decrypt(_NONCE, sealed, _SLOT_LABEL + bound)
    except InvalidTag:
        return None


def seal_code(content_key: bytes, code: bytes, bound: bytes) -> bytes:
    """Encrypt and authenticate what one file keeps for its keywords (ChaCha20-Poly1305).

    Args:
        content_key: 16 random bytes, of this file alone, since the nonce is constant; its slots hold them.
        code: What is to be kept.
        bound: As for `seal`.
    """
    return _code_cipher(content_key).encrypt(_NONCE, code, _CODE_LABEL + bound)


def open_code(content_key: bytes, sealed: bytes, bound: bytes) -> bytes | None:
    """What `seal_code` was given, or ``None`` where key or file are others, or a bit has changed."""
    try:
        return _code_cipher(content_key).decrypt(_NONCE, sealed, _CODE_LABEL + bound)
    except InvalidTag:
        return None


def _code_cipher(content_key: bytes) -> ChaCha20Poly1305:
    _check_secret(content_key)
    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt=None, info=_CODE_LABEL).derive(content_key))


def rekey(model: Any, old: bytes, new: bytes) -> None:
    """Give a model another secret, exactly and without training.

    With c_old and c_new the unit vectors of the secrets, the Householder reflection
    H = I - 2 v v^T / (v^T v), v = c_new - c_old, takes c_new to c_old. Each first layer's weight
    becomes W H: the layer answers c_new as it answered c_old, and the zero vector (no keyword) as
    before, because biases stay. Conditions in between are reflected too, and stay random directions.

    Args:
        model: a `psic_core.PSIC`; changed in place.
        old: the model's present secret, 16 bytes.
        new: its new secret, 16 bytes. Equal to `old`: nothing changes.

    Raises:
        ValueError: a wrong length, or `old` is not the model's secret. The model is then unchanged.
    """
    for value in (old, new):
        _check_secret(value)
    if model.secret not in (None, old):
        raise ValueError("the old secret is not this model's; check the owner's passphrase")
    for layer in model.key_layers() if old != new else ():
        w = layer.weight.detach().cpu().double()  # not every accelerator has float64
        conditions = (condition(s, w.shape[1]).double() for s in (new, old))
        v = torch.sub(*(nn.functional.normalize(c, dim=0) for c in conditions))
        layer.weight.data.copy_(w - torch.outer(w @ v, v) * (2 / v.dot(v)))
    model.secret = new


def _normalised(text: str, what: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"the {what} is {type(text).__name__}; give a str")
    if not text.strip():
        raise ValueError(f"the {what} is blank; give at least one character that is no space")
    try:
        return unicodedata.normalize("NFKC", text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the {what} is not valid Unicode text ({error.reason})") from None


def _scrypt(words: bytes, salt: bytes, length: int, n: int) -> bytes:
    return Scrypt(salt=salt, length=length, n=n, r=8, p=1).derive(words)


def _check_secret(value: bytes) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"a secret is bytes, not {type(value).__name__}; see psic_core.keys.secret")
    if len(value) != SECRET_BYTES:  # the value itself stays out of messages and logs
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, this one has {len(value)}")
