"""One pass over a data set: code every picture, show every version to the readers; kept on disk by content."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from psic_core.codec import PSIC
from psic_core.datasets.eval_sets import EvalSet
from psic_core.lab.versions import VERSIONS, code_versions
from psic_core.metrics import psnr
from psic_core.models.vlp import Target
from psic_core.training.checkpoints import kept_state
from psic_core.training.files import store_tensors

LAYOUT = "2"  # part of every key: raise it when a pass computes something else


class Reader(NamedTuple):
    """Something that looks at pictures: a target, a captioner."""

    name: str
    module: nn.Module  # its network; the weights are part of the cache's key
    look: Callable[[Float[Tensor, "batch 3 height width"]], Tensor]  # pictures in [0, 1] to one row each


class Pass(NamedTuple):
    """What one pass gives; a row a picture."""

    seen: dict[str, Tensor]  # by version: what the reader makes of it
    psnr: dict[str, Float[Tensor, " n"]]  # dB by version, at most 100; not of the original
    change: Float[Tensor, " n"]  # dB of the protected version against the full one, at most 100
    bpp: Float[Tensor, " n"]  # of the real PSIC file
    bpp_plain: Float[Tensor, " n"]  # of the plain codec's


@torch.no_grad()
def read(
    model: PSIC,
    plain: PSIC,
    data: EvalSet,
    readers: Sequence[Reader],
    cache: Path | None = None,
    versions: Sequence[str] = VERSIONS,
) -> list[Pass]:
    """Write every picture to real files, decode all versions from them, and let the readers look.

    Args:
        model: PSIC, with its secret.
        plain: The plain codec of the same rate.
        data: The pictures.
        readers: All see the same files; one whose pass is in the cache need not look again.
        cache: Folder of finished passes; ``None`` computes anew and keeps nothing.
        versions: Those that the readers see; equal pictures are shown once.

    Returns:
        A pass for each reader; from the cache if models, reader and pictures are the same to the last bit.
    """
    model.full_condition()
    paths = _paths(model, plain, data, readers, cache, versions)
    missing = [k for k, path in enumerate(paths) if path is None or not path.is_file()]
    rows: dict[int, dict[str, list[Tensor]]] = {k: {} for k in missing}
    for i in tqdm(range(data.size if missing else 0), desc=f"{data.name}, {len(missing)} readers", mininterval=2):
        x = data.picture(i)[None]
        coded, pixels = code_versions(model, plain, x, model.secret, i, versions), x.shape[-1] * x.shape[-2]
        row = {f"psnr {v}": min(psnr(p, x), 100.0) for v, p in coded.pictures.items() if v != "original"}
        row["change"] = min(psnr(coded.pictures["protected"], coded.pictures["full"]), 100.0)
        row |= {"bpp": 8 * coded.psic_bytes / pixels, "bpp_plain": 8 * coded.plain_bytes / pixels}
        measured = {name: torch.tensor(value, dtype=torch.float64) for name, value in row.items()}
        for k, kept in rows.items():
            for name, value in (measured | _look(readers[k], {v: coded.pictures[v] for v in versions})).items():
                kept.setdefault(name, []).append(value)
    passes = []
    for k, path in enumerate(paths):
        found = {name: torch.stack(values) for name, values in rows[k].items()} if k in rows else load_file(path)
        if k in rows and path:
            store_tensors(found, path)
        seen, level = (
            {n.removeprefix(kind): t for n, t in found.items() if n.startswith(kind)} for kind in ("seen ", "psnr ")
        )
        passes.append(Pass(seen, level, found["change"], found["bpp"], found["bpp_plain"]))
    return passes


class Texts:
    """A target's text features, computed once.

    Args:
        target: The model that reads texts.
        cache: Folder that keeps them on disk; ``None``: they are kept in memory alone.
    """

    def __init__(self, target: Target, cache: Path | None = None) -> None:
        self.target, self.cache, self._known = target, cache, {}

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """As `Target.encode_text`, on the CPU."""
        if (key := tuple(texts)) not in self._known:
            name = hashlib.sha256((digest(self.target) + repr(key)).encode()).hexdigest()[:16] if self.cache else ""
            path = self.cache / f"texts-{name}.safetensors" if self.cache else None
            there = path is not None and path.is_file()
            self._known[key] = load_file(path)["texts"] if there else self.target.encode_text(texts).cpu()
            if path and not there:
                store_tensors({"texts": self._known[key]}, path)
        return self._known[key]


def digest(module: nn.Module) -> str:
    """A hash of a network's weights and buffers, by name; of a codec, of what its checkpoint keeps."""
    total = hashlib.sha256()
    state = kept_state(module) if isinstance(module, PSIC) else module.state_dict()
    for name, tensor in state.items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _paths(
    model: PSIC, plain: PSIC, data: EvalSet, readers: Sequence[Reader], cache: Path | None, versions: Sequence[str]
) -> list[Path | None]:
    """The file of each reader's pass, named by everything that it depends on."""
    if cache is None:
        return [None] * len(readers)
    total = hashlib.sha256(repr((LAYOUT, model.config, model.secret, data.size, tuple(versions))).encode())
    for codec in (model, plain):
        total.update(digest(codec).encode())
    for i in range(data.size):
        picture = data.picture(i)
        total.update(repr(tuple(picture.shape)).encode())
        total.update(picture.contiguous().numpy().tobytes())
    keys = (hashlib.sha256((total.hexdigest() + r.name + digest(r.module)).encode()).hexdigest()[:16] for r in readers)
    return [cache / f"pass-{key}.safetensors" for key in keys]


def _look(reader: Reader, pictures: dict[str, Float[Tensor, "1 3 height width"]]) -> dict[str, Tensor]:
    """Show each different picture once: a full version that is the plain one costs nothing."""
    distinct, place = [], {}
    for version, picture in pictures.items():
        place[version] = next((k for k, other in enumerate(distinct) if torch.equal(other, picture)), len(distinct))
        if place[version] == len(distinct):
            distinct.append(picture)
    seen = reader.look(torch.cat(distinct)).cpu()
    return {f"seen {version}": seen[k] for version, k in place.items()}
