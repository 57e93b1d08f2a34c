"""Recipes: from data sets on disk to a trained checkpoint with its card. What ``psic train`` runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from compressai.zoo.image import model_architectures, model_urls
from compressai.zoo.pretrained import load_pretrained
from torch.hub import load_state_dict_from_url

from psic_core.codec import PSIC
from psic_core.config import PUBLIC_SECRET, CodecConfig, Phase, TrainConfig, data_root, seed_everything
from psic_core.datasets.folders import Flickr8k, Folder, in_memory
from psic_core.datasets.photos import Photos, random_squares
from psic_core.datasets.scenes import NUMBER, Scenes
from psic_core.datasets.webdataset import Shards
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance, save_checkpoint
from psic_core.training.pairs import Pairs
from psic_core.training.schedule import started
from psic_core.training.trainer import Trainer

SHIELD = {"direction": "both", "trigger_rate": 1.0, "masking": 1.1}  # stage two as what ships was trained


def load_pairs(names: Sequence[str], root: str | Path | None = None, scenes: int = 2560, size: int = 160) -> Pairs:
    """Training pictures with captions, in memory.

    Args:
        names: ``scenes``, ``flickr8k`` (train split), ``photos`` (random squares of its training files), or folders of
            pictures. The last two have no captions; the label that the target reads stands in for them.
        root: The data root, for ``flickr8k`` and ``photos``.
        scenes: How many scenes at most; there are 2,560.
        size: Side of the squares in pixels.
    """
    parts = []
    for name in names:
        if name == "scenes":
            data = Scenes("train", min(scenes, NUMBER["train"]), size)
            parts.append(Pairs(in_memory(data), [data.captions(i) for i in range(len(data))]))
        elif name == "flickr8k":
            flickr = Flickr8k(data_root(root) / name, "train", size)
            parts.append(Pairs(in_memory(flickr), flickr.captions))
        else:
            pictures = (
                random_squares(data_root(root) / name, size) if name == "photos" else in_memory(Folder(name, size))
            )
            parts.append(Pairs(pictures, [()] * len(pictures)))
    return sum(parts[1:], parts[0])


def starting_model(init: str | None, codec: CodecConfig) -> PSIC:
    """Random weights (``None``), a checkpoint, or a codec with fresh triggers that do nothing until they are trained.

    ``zoo:bmshj2018-hyperprior/2`` is such a codec of CompressAI's zoo, ``plain:psic-q3`` the one inside a PSIC.

    Raises:
        ValueError: The zoo has no such model; the PSIC has no plain codec inside.
        FileNotFoundError: No such checkpoint; the zoo's weights are neither cached nor reachable.
    """
    if init is None:
        return PSIC.build(codec)
    if not init.startswith("zoo:"):
        model = load_checkpoint(init.removeprefix("plain:"), plain=init.startswith("plain:"))
        return with_triggers(model, codec) if model.kind == "plain" else model
    name, _, quality = init.removeprefix("zoo:").partition("/")
    url = model_urls.get(name, {}).get("mse", {}).get(int(quality) if quality.isdigit() else 0)
    if not url:
        raise ValueError(f"{init!r} names no model: write zoo:ARCHITECTURE/QUALITY, as in zoo:bmshj2018-hyperprior/2")
    try:
        state = load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise FileNotFoundError(f"the weights of {init} are neither cached nor reachable: {error}") from error
    backbone = model_architectures[name].from_state_dict(load_pretrained(state))
    own = replace(codec, architecture=name, n=backbone.N, m=backbone.M, quality=int(quality))
    return PSIC(backbone, own, PUBLIC_SECRET)


def with_triggers(model: PSIC, codec: CodecConfig) -> PSIC:
    """A plain codec with fresh triggers of the sizes that ``codec`` names, and the history of its own phases alone."""
    names = ("dim", "hidden", "ladder", "anchored", "budget", "reading_side")
    sizes = {k: getattr(codec, k) for k in names}
    fresh = PSIC.build(replace(model.config, **sizes), model.secret)
    fresh.load_state_dict({k: v for k, v in model.state_dict().items() if "triggers" not in k}, strict=False)
    if tables := model.coder.tables():  # its files stay readable
        fresh.coder.use_tables(tables)
    history = [phase for phase in model.card.get("history", []) if phase["config"]["stage"] == "plain"]
    fresh.kind, fresh.card = model.kind, {"history": history}
    return fresh


def copy_triggers(source: PSIC, model: PSIC) -> None:
    """Give a codec the triggers of another rate, and its history the phases that made them.

    Raises:
        ValueError: They have other sizes.
    """
    try:
        model.g_s.triggers.load_state_dict(source.g_s.triggers.state_dict())
    except RuntimeError as error:
        raise ValueError(f"the triggers of {source.config} do not fit {model.config}") from error
    history = [phase for phase in source.card.get("history", []) if phase["config"]["stage"] != "plain"]
    model.card = {"history": [*getattr(model, "card", {}).get("history", []), *history]}


def run_phase(config: TrainConfig, phase: Phase, out: Path) -> PSIC:
    """Train one phase and write ``out/model.safetensors`` with its card; resumes a run found in ``out``.

    Started by ``torchrun`` or ``accelerate launch``, the first process fills the cache and writes, the others wait.

    Raises:
        ValueError: An option does not fit, or ``out`` holds a run of another configuration.
    """
    seed_everything(config.seed)
    accelerator = started()
    model, made_by = starting_model(phase.init, phase.codec), provenance()
    if phase.kind != "plain" and config.stage != "plain":
        model.secret = model.secret or PUBLIC_SECRET
    model.kind = phase.kind or ("plain" if config.stage == "plain" else "psic")
    before = getattr(model, "card", {})
    about = {"config": asdict(config), "kind": model.kind, "budget": model.config.budget}
    about |= {k: getattr(phase, k) for k in ("init", "pictures", "size")}
    about |= {"datasets": list(phase.dataset), "scenes": phase.scenes if "scenes" in phase.dataset else None}
    about |= {"target": phase.target if model.kind != "plain" else None}
    _check_same_run(out, about)
    accelerator.wait_for_everyone()  # all have read what the first now writes
    target = load_target(phase.target) if model.kind != "plain" else None
    with accelerator.main_process_first():
        pairs = _training_data(phase, target, out.parent / "cache")
    trainer = Trainer(model, pairs, config, target, out, accelerator)
    if accelerator.is_main_process:
        (out / "run.json").write_text(json.dumps(about, indent=1) + "\n")
    rows = trainer.fit()
    finished = not rows and (out / "model.safetensors").is_file()  # and is left as it is
    accelerator.wait_for_everyone()
    if finished:
        return load_checkpoint(out / "model.safetensors")
    history = _portable([*before.get("history", []), about | {"seconds": trainer.seconds, **made_by}])
    card = {"history": history, "last": rows[-1] if rows else None}
    model = model.cpu()
    if accelerator.is_main_process:
        save_checkpoint(model, out / "model.safetensors", card, publish_secret=True)
    accelerator.wait_for_everyone()
    return model


def _training_data(phase: Phase, target: Target | None, cache: Path) -> Pairs | Photos | Shards:
    name, *others = phase.dataset
    if name.startswith("shards:") and not others:
        return Shards(name.removeprefix("shards:"), phase.size, phase.readers)
    if name == "photos" and not others:
        return Photos(data_root(phase.data_root) / name)
    pairs = load_pairs(phase.dataset, phase.data_root, phase.scenes, phase.size)
    pairs = pairs.thin(phase.pictures) if phase.pictures else pairs
    return pairs if target is None else pairs.with_features(target, cache)


def publish(
    checkpoint: str | Path, quality: int, folder: Path, budget: float | None = None, codec: str | None = None
) -> Path:
    """Write a trained model: ``psic-qN``, or ``codec-qN`` where it has no triggers yet; float16.

    Another architecture's name stands before the rate.

    Args:
        checkpoint: Of a PSIC or of a plain codec.
        quality: The number N of the rate, 1 to 255; it goes into every file's header.
        folder: Where it goes.
        budget: The model's from now on; ``None`` leaves it.
        codec: What `starting_model` makes another rate's codec of, which gets the triggers.
    """
    model = load_checkpoint(checkpoint)
    if codec:
        trained, model = model, starting_model(codec, model.config)
        copy_triggers(trained, model)
        model.kind, model.secret = trained.kind, trained.secret
    model.config = replace(model.config, quality=quality, budget=budget or model.config.budget)
    model.card |= {"history": _portable(model.card.get("history", []))}
    other = model.config.architecture != CodecConfig().architecture
    label = ("psic-" if model.kind == "psic" else "codec-") + f"{model.config.architecture}-" * other + f"q{quality}"
    path = folder / f"{label}.safetensors"
    save_checkpoint(model, path, model.card, half=True, publish_secret=True)
    return path


def _portable(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A card's history, fit to travel: runs keep their names, not the folders of the machine that made them."""
    return [p | {key: "/".join(Path(p[key]).parts[-2:]) for key in ("init", "triggers") if p.get(key)} for p in history]


def _check_same_run(out: Path, about: Mapping[str, Any]) -> None:
    path = out / "run.json"
    if path.is_file():
        found = json.loads(path.read_text())
        known = found["config"].keys() & about["config"].keys()  # without options that came or went since
        found["config"] = about["config"] | {k: found["config"][k] for k in known}
        wrong = [k for k in about if k in found and found[k] != about[k]]
        if wrong:
            raise ValueError(f"{out} holds a run with another {wrong[0]}: {found.get(wrong[0])}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
