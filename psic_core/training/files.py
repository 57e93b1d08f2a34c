"""Files that are there whole or not at all, and training logs as CSV."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

Row = dict[str, float | str]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes its name at the end; it vanishes where the writing fails.

    Args:
        path: The file, in a folder that is there.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def store_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with its hash, replaced atomically; its folder is made where missing.

    Args:
        tensors: By name, on any device.
        path: The file.
        metadata: Of its header.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        with whole(path) as partial:
            save_file(kept, partial, (metadata or {}) | {"sha256": _sha256(kept, metadata or {})})
    except SafetensorError as error:
        raise OSError(f"cannot write {str(path)!r}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        ValueError: The file is no safetensors file, or not as `store_tensors` wrote it.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors: {error}") from error
    sha256 = metadata.pop("sha256", None)  # files of others have none
    if sha256 not in (None, _sha256(tensors, metadata)):
        raise ValueError(f"{str(path)!r} is damaged: its SHA-256 is wrong; fetch it again")
    return tensors, metadata


def store_state(state: dict[str, Any], path: Path) -> None:
    """Write what `torch.save` writes, behind its SHA-256 of 32 bytes; replaced atomically."""
    torch.save(state, buffer := io.BytesIO())
    with whole(path) as partial:
        partial.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """What `store_state` wrote, its tensors on the CPU.

    Raises:
        ValueError: The file is damaged, or another program's.
    """
    sha256, data = (content := path.read_bytes())[:32], content[32:]
    try:
        if hashlib.sha256(data).digest() != sha256:
            raise ValueError("its SHA-256 is wrong")
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load has many
        raise ValueError(f"{str(path)!r} cannot be resumed from: {error}; delete it to begin the run anew") from error


def write_log(path: Path, rows: list[Row]) -> None:
    """Append rows to a CSV log; rows of earlier calls give way to those of the same step and later."""
    import pandas  # which only this needs

    if rows:
        old = pandas.read_csv(path) if path.is_file() else pandas.DataFrame({"step": []})
        new, old = pandas.DataFrame(rows), old[old["step"] < rows[0]["step"]]
        (pandas.concat([old, new]) if len(old) else new).to_csv(path, index=False, float_format="%.5g")


def _sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        digest.update(repr((name, tensors[name].dtype, tuple(tensors[name].shape))).encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
