"""Checkpoints: safetensors with the configuration and the provenance in the header; never a pickle."""

import copy
import json
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from compressai.models import CompressionModel

from psic_core import keys
from psic_core.codec import PSIC
from psic_core.config import CodecConfig, data_dir, repo_dir
from psic_core.training.files import read_tensors, store_tensors

# Buffers that CompressAI fills in update(); of a portable model they are stored apart, in 70 kB instead of 400.
DERIVED = ("_quantized_cdf", "_offset", "_cdf_length", "scale_table")
_TABLES = "tables."


def save_checkpoint(
    model: PSIC,
    path: str | Path,
    card: dict[str, Any] | None = None,
    half: bool = False,
    publish_secret: bool = False,
) -> None:
    """Write a model.

    Args:
        model: The model; of kind ``plain``, its unused triggers are left out.
        path: ``.safetensors`` file, replaced atomically.
        card: Provenance: data, steps, hardware, commit, figures.
        half: Store float16. The loaded model is then the rounded one: its streams have another fingerprint.
        publish_secret: Store the model's secret too. Only for models whose secret is public anyway.
    """
    exact = {n for n, _ in model.named_buffers()}  # bounds such as 1e-9 would be 0 in float16
    exact |= {n for n, _ in model.named_parameters() if ".cltg." in n}  # the key's trigger would no longer be zero
    tensors = {
        name: p.half() if half and name not in exact and p.is_floating_point() else p
        for name, p in kept_state(model).items()
    }
    here = model if next(model.parameters()).device.type == "cpu" else copy.deepcopy(model).cpu()
    tensors |= {_TABLES + name: table for name, table in here.coder.tables().items()}
    header = {"config": asdict(model.config), "kind": model.kind, "card": card or {}}
    header["secret_check"] = (keys.check(model.secret) if model.secret else model.secret_check).hex()
    if publish_secret and model.secret:
        header["secret"] = model.secret.hex()
    store_tensors(tensors, Path(path), {"psic": json.dumps(header)})


def kept_state(model: PSIC) -> dict[str, torch.Tensor]:
    """What a checkpoint keeps of a model: no derived tables, and of a plain codec no triggers, which do nothing."""
    idle = "triggers" if model.kind == "plain" else None
    return {n: t for n, t in model.state_dict().items() if not (n.endswith(DERIVED) or (idle and idle in n))}


def load_checkpoint(path: str | Path, backbone: CompressionModel | None = None, plain: bool = False) -> PSIC:
    """Load a model in eval mode, on the CPU, in float32.

    Args:
        path: A file, or the name of a shipped one (``psic-q2``).
        backbone: A model like the one that was wrapped, where CompressAI cannot build it (architecture "custom").
        plain: Only the plain codec inside: an anchored PSIC without its triggers, trained by the same steps.

    Raises:
        FileNotFoundError: Neither a file nor a shipped checkpoint.
        ValueError: No PSIC checkpoint, or its tensors do not fit its configuration; no plain codec inside.
    """
    found = find_checkpoint(path)
    try:
        stored, metadata = read_tensors(found)
        header = json.loads(metadata["psic"])
        tables = {name.removeprefix(_TABLES): t for name, t in stored.items() if name.startswith(_TABLES)}
        tensors = {name: t.float() for name, t in stored.items() if not name.startswith(_TABLES)}
        config = CodecConfig.stored(header["config"])
        model = PSIC.build(config) if backbone is None else PSIC(backbone, config)
        _read_header(model, header)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{found} is no PSIC checkpoint (safetensors with a 'psic' header): {error}") from error
    state = model.state_dict()
    wrong = [n for n, t in tensors.items() if n not in state or state[n].shape != t.shape]
    wrong += sorted(set(kept_state(model)) - set(tensors))
    if wrong:
        raise ValueError(f"{found}: tensor {wrong[0]!r} is missing or does not fit {config}")
    kept = {n: t for n, t in tensors.items() if not (plain and "triggers" in n)}  # plain: they stay as if never trained
    model.load_state_dict(kept, strict=False)
    try:
        if tables:  # a file without them is older than they are: the weights give them
            model.coder.use_tables(tables)
    except ValueError as error:
        raise ValueError(f"{found}: {error}") from error
    if plain and model.kind == "psic" and not config.anchored:
        raise ValueError(f"{found} is not anchored: without its triggers it is no plain codec; name one of its own")
    model.kind = "plain" if plain else model.kind
    return model.eval()


def _read_header(model: PSIC, header: dict[str, Any]) -> None:
    model.kind, model.card = header["kind"], header["card"]
    if model.kind not in ("plain", "psic"):
        raise ValueError(f"kind {model.kind!r} is neither plain nor psic")
    model.secret = bytes.fromhex(header["secret"]) if "secret" in header else None
    model.secret_check = bytes.fromhex(header.get("secret_check", ""))
    if model.secret is not None and len(model.secret) != keys.SECRET_BYTES:
        raise ValueError(f"the secret has {len(model.secret)} bytes, not {keys.SECRET_BYTES}")


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint's file, by path or by the name of a shipped one."""
    shipped = data_dir() / "checkpoints" / f"{path}.safetensors"
    for candidate in (Path(path), shipped):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(p.stem for p in shipped.parent.glob("*-q*.safetensors"))) or "none"
    raise FileNotFoundError(f"no checkpoint {str(path)!r}; shipped: {names}")


def read_card(path: str | Path) -> dict[str, Any]:
    """The header of a checkpoint: configuration, kind, card.

    Raises:
        FileNotFoundError: Neither a file nor a shipped checkpoint.
        ValueError: No PSIC checkpoint.
    """
    found = find_checkpoint(path)
    try:
        return json.loads(read_tensors(found)[1]["psic"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{found} is no PSIC checkpoint (safetensors with a 'psic' header): {error}") from error


def provenance() -> dict[str, str]:
    """Which commit, hardware and library a result was made with."""
    git = ["git", "-C", str(repo_dir())]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return {
        "commit": (commit or "unknown") + ("+changes" if dirty.strip() else ""),
        "hardware": f"{hardware} ({platform.machine()})",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
