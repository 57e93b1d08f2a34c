"""Files that are there whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def store_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, replaced atomically; its folder is made where missing.

    Args:
        tensors: By name, on any device.
        path: The file.
        metadata: Of its header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, metadata)
    partial.replace(path)
