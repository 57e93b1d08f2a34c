"""One pass over a data set: code every picture, show every version to the readers; kept on disk by content."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
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

LAYOUT = "1"  # part of every key: raise it when a pass computes something else


class Reader(NamedTuple):
    """Something that looks at pictures: a target, a captioner."""

    name: str
    module: nn.Module  # its network; the weights are part of the cache's key
    look: Callable[[Float[Tensor, "batch 3 height width"]], Tensor]  # pictures in [0, 1] to one row each


class Pass(NamedTuple):
    """What one pass gives; a row a picture."""

    seen: dict[str, Tensor]  # by version: what the reader makes of it
    psnr: dict[str, Float[Tensor, " n"]]  # dB by version, at most 100; not of the original
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
    shared: dict[str, list[float]] = {}
    seen: dict[int, dict[str, list[Tensor]]] = {k: {v: [] for v in versions} for k in missing}
    names = ", ".join(readers[k].name for k in missing)
    for i in tqdm(range(data.size if missing else 0), desc=f"{data.name}, {names}", mininterval=2):
        x = data.picture(i)[None]
        coded, pixels = code_versions(model, plain, x, model.secret, seed=i), x.shape[-1] * x.shape[-2]
        row = {f"psnr {v}": min(psnr(coded.pictures[v], x), 100.0) for v in VERSIONS[1:]}
        row |= {"bpp": 8 * coded.psic_bytes / pixels, "bpp_plain": 8 * coded.plain_bytes / pixels}
        for name, value in row.items():
            shared.setdefault(name, []).append(value)
        for k in missing:
            for version, answer in _look(readers[k], {v: coded.pictures[v] for v in versions}).items():
                seen[k][version].append(answer)
    measured = {name: torch.tensor(values, dtype=torch.float64) for name, values in shared.items()}
    passes = []
    for k, path in enumerate(paths):
        if k in seen:
            found = measured | {f"seen {v}": torch.stack(rows) for v, rows in seen[k].items()}
            if path:
                store_tensors(found, path)
        else:
            found = load_file(path)
        passes.append(_unflatten(found))
    return passes


class Texts:
    """A target's text features, computed once: kept in memory, and on disk where a folder is given.

    Args:
        target: The model that reads texts.
        cache: Folder, or ``None``.
    """

    def __init__(self, target: Target, cache: Path | None = None) -> None:
        self.target, self.cache, self._known = target, cache, {}

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """As `Target.encode_text`, on the CPU."""
        name = hashlib.sha256(repr(list(texts)).encode()).hexdigest()
        if name not in self._known:
            self._known[name] = self._look_up(name, texts)
        return self._known[name]

    def _look_up(self, name: str, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        if self.cache is None:
            return self.target.encode_text(texts).cpu()
        key = hashlib.sha256((LAYOUT + name + self._weights).encode()).hexdigest()[:16]
        path = self.cache / f"texts-{key}.safetensors"
        if not path.is_file():
            store_tensors({"text": self.target.encode_text(texts).cpu()}, path)
        return load_file(path)["text"]

    @cached_property
    def _weights(self) -> str:
        return digest(self.target)


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
    shared, paths = total.hexdigest(), []
    for reader in readers:
        key = hashlib.sha256((shared + reader.name + digest(reader.module)).encode()).hexdigest()[:16]
        paths.append(cache / f"pass-{key}.safetensors")
    return paths


def _look(reader: Reader, pictures: dict[str, Float[Tensor, "1 3 height width"]]) -> dict[str, Tensor]:
    """Show each different picture once: a full version that is the plain one costs nothing."""
    distinct, place = [], {}
    for version, picture in pictures.items():
        known = next((k for k, other in enumerate(distinct) if torch.equal(other, picture)), len(distinct))
        place[version] = known
        if known == len(distinct):
            distinct.append(picture)
    seen = reader.look(torch.cat(distinct)).cpu()
    return {version: seen[k] for version, k in place.items()}


def _unflatten(found: dict[str, Tensor]) -> Pass:
    by = {
        kind: {k.removeprefix(kind): v for k, v in found.items() if k.startswith(kind)} for kind in ("seen ", "psnr ")
    }
    return Pass(by["seen "], by["psnr "], found["bpp"], found["bpp_plain"])
