"""The range coder: its tables as whole numbers, made once and stored, and symbols to strings and back."""

import copy

import torch
from compressai import ans
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from jaxtyping import Int32
from torch import Tensor

from psic_core.models.exact import SCALES

_CHUNK = 2**20  # symbols that are lists of Python numbers at a time


class _Precise(GaussianConditional):
    """Tables from float64: its rounding errors are 10^7 times too small to change the 16 bits of a probability."""

    def _standardized_cumulative(self, inputs: Tensor) -> Tensor:
        return super()._standardized_cumulative(inputs.double())


@torch.no_grad()
def make_tables(model: EntropyModel) -> None:
    """Fill in the CDF tables of an entropy model; CompressAI's own ``update()`` computes them in float32."""
    if isinstance(model, GaussianConditional):
        twin = _Precise(None, tail_mass=model.tail_mass)
        twin.update_scale_table(SCALES)
        model.scale_table = twin.scale_table
    else:
        twin = copy.deepcopy(model).double()
        twin.update(force=True)
    model._quantized_cdf, model._cdf_length, model._offset = twin._quantized_cdf, twin._cdf_length, twin._offset


def stored(model: EntropyModel) -> dict[str, Int32[Tensor, " length"]]:
    """An entropy model's tables as a checkpoint keeps them: the rows of its CDF end to end."""
    used = torch.arange(model._quantized_cdf.shape[1]) < model._cdf_length[:, None]
    return {"cdf": model._quantized_cdf[used], "length": model._cdf_length, "offset": model._offset}


def restore(model: EntropyModel, tables: dict[str, Tensor]) -> None:
    """Give an entropy model stored tables; the range coder, which checks nothing, gets none that could crash it.

    Raises:
        ValueError: They are no tables of this model.
    """
    cdf, length, offset = (tables[name] for name in ("cdf", "length", "offset"))
    rows = model.channels if isinstance(model, EntropyBottleneck) else len(SCALES)
    flat = all(t.dtype == torch.int32 and t.ndim == 1 for t in (cdf, length, offset))
    if not flat or not len(length) == len(offset) == rows or length.min() < 3 or int(length.sum()) != len(cdf):
        raise ValueError("its tables of the range coder do not fit the model")
    padded = torch.zeros(rows, int(length.max()), dtype=torch.int32)
    used = torch.arange(padded.shape[1]) < length[:, None]
    padded[used] = cdf
    steps = padded.diff()[used[:, 1:]]
    if padded[:, 0].any() or (steps <= 0).any() or (padded.gather(1, length[:, None].long() - 1) != 2**16).any():
        raise ValueError("its tables of the range coder do not rise from 0 to 65536")
    model._quantized_cdf, model._cdf_length, model._offset = padded, length, offset
    if isinstance(model, GaussianConditional):
        model.scale_table = SCALES.clone()


def channels(z: Tensor) -> Int32[Tensor, "1 n h w"]:
    """Which table each hyper-latent has: an entropy bottleneck has one a channel."""
    return torch.arange(z.shape[1], dtype=torch.int32)[None, :, None, None].expand(z.shape)


def write(model: EntropyModel, symbols: Int32[Tensor, "1 c h w"], indexes: Int32[Tensor, "1 c h w"]) -> bytes:
    """The string of symbols, each coded with the table that its index names."""
    coder, tables = ans.BufferedRansEncoder(), _lists(model)
    for some, which in zip(symbols.flatten().split(_CHUNK), indexes.flatten().split(_CHUNK), strict=True):
        coder.encode_with_indexes(some.tolist(), which.tolist(), *tables)
    return coder.flush()


def read(model: EntropyModel, string: bytes, indexes: Int32[Tensor, "1 c h w"]) -> Int32[Tensor, "1 c h w"]:
    """The symbols of a string; any string gives some."""
    coder, tables = ans.RansDecoder(), _lists(model)
    coder.set_stream(padded(string, indexes.numel()))
    chunks = indexes.flatten().split(_CHUNK)
    parts = [torch.tensor(coder.decode_stream(some.tolist(), *tables), dtype=torch.int32) for some in chunks]
    return torch.cat(parts).view(indexes.shape)


def padded(string: bytes, symbols: int) -> bytes:
    """A string with zeros behind it, so that the decoder, which checks no bounds, reads no foreign memory.

    A symbol takes at most 4 bytes: so many when the decoder's state is zero, and a forged string can begin with that.
    An escape code, which a string can announce to be 15 times as long as the announcement, ends in zeros.
    """
    return string + bytes(4 * symbols + 16 * len(string) + 4096)


def _lists(model: EntropyModel) -> tuple[list[list[int]], list[int], list[int]]:
    return model._quantized_cdf.tolist(), model._cdf_length.tolist(), model._offset.tolist()
