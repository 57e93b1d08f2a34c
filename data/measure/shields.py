"""The three shields side by side, attack by attack: ``python data/measure/shields.py psic-q4 demo kodak --limit 24``.

Every picture is coded to real files at the size that it has. A triggers' column appears where the checkpoint has
triggers. What was read is kept in ``--cache``, so that a run that was stopped goes on; the JSON counts what is there.
"""

import argparse
import json
import time
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from limits import DENOISERS, PURIFYING, Purifier, own_versions, train_purifier
from open_clip import IMAGENET_CLASSNAMES
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from psic_core import bitstream
from psic_core.codec import PSIC
from psic_core.config import data_dir
from psic_core.datasets.eval_sets import PHOTO_CLASSES, EvalSet, eval_set
from psic_core.datasets.photos import demo_photos
from psic_core.datasets.scenes import Scenes
from psic_core.lab.evaluate import write_json
from psic_core.lab.limits import LEVELS as THREATS
from psic_core.lab.passes import Texts, digest
from psic_core.lab.processing import PLATFORMS, recoded
from psic_core.lab.tasks import task_results
from psic_core.metrics import count_flips, flip_rate, psnr, ssimulacra2
from psic_core.models.delta import NOTHING, enlarged, reduced
from psic_core.models.images import pad_to, round_to_8_bits, to_tensor
from psic_core.models.vlp import Target, load_target
from psic_core.training.checkpoints import load_checkpoint, provenance
from psic_core.training.files import whole

READERS = ("lite-clip", "lite1-clip", "lite2-clip")
KEYWORD = "my words"
SHIELDS = ("trained", "carried", "sealed")
SHOWN = ("JPEG 75", "JPEG 30", "half size and back", "crop to 75 %", "screenshot")
PUBLISHED, AGAIN = "as published", "coded again, triggers left out"
DECODER = "triggers and code left out of the program"
PURIFIED, UNSEALED = (f"purifier, made with the {shield} shield" for shield in ("trained", "sealed"))
LEVELS = {PUBLISHED: "none", "median 3 × 3": "denoisers", DECODER: "stream"}
LEVELS |= dict.fromkeys((AGAIN, PURIFIED, UNSEALED), "rival")
SEALED_OWN = 60  # pictures that a rival seals himself, with a search for each


def attacks(model: PSIC, folder: Path) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is done to a published picture; the decoder's triggers rest where it is coded again.

    Purifiers learn when a picture is first shown to them, for minutes, and are kept in the folder.
    """
    plain = load_checkpoint(model.card["path"], plain=model.kind == "psic")
    chosen = {name: PLATFORMS[name] for name in SHOWN} | {"median 3 × 3": DENOISERS["median 3 × 3"]}
    trained = {PURIFIED: lambda: own_versions(model, model.config.reading_side)} if model.kind == "psic" else {}
    pairs = trained | {UNSEALED: lambda: own_sealed(model)}

    @cache
    def purifier(name: str) -> Purifier:
        file = folder / f"{name}, {PURIFYING} steps.safetensors"
        if not file.is_file():
            weights = train_purifier(*pairs[name](), PURIFYING).state_dict()
            with whole(file) as part:
                save_file(weights, part)
        learned = Purifier().requires_grad_(False)
        learned.load_state_dict(load_file(file))
        return learned.eval()

    def purify(name: str, x: Tensor) -> Tensor:
        """At the size at which the shields are made, enlarged like them."""
        small = reduced(x, model.config.reading_side)
        return round_to_8_bits(x + enlarged(purifier(name)(small) - small, x.shape[-2:]))

    return {PUBLISHED: lambda x: x, **chosen, AGAIN: recoded(plain), **{n: partial(purify, n) for n in pairs}}


@torch.no_grad()
def own_sealed(model: PSIC) -> tuple[Tensor, Tensor]:
    """Scenes that a rival seals himself and has without their shield, twice as large as readers look, then reduced."""
    side = model.config.reading_side
    scenes, pairs = Scenes("train", SEALED_OWN, 2 * side), []
    for i in tqdm(range(SEALED_OWN), "sealed by the rival", disable=None):
        x = scenes[i].image[None]
        sealed = model.decompress_tensor(model.compress(x, KEYWORD, adapt="sealed"))
        plain = model.picture(model.quantised_latents(pad_to(x, model.factor)), (2 * side, 2 * side), adapted=NOTHING)
        pairs.append([reduced(round_to_8_bits(p), side) for p in (sealed, plain)])
    protected, full = (torch.cat(versions) for versions in zip(*pairs, strict=True))
    return protected, full


def measure(model: PSIC, x: Tensor, done: dict[str, Callable], readers: list[Target]) -> tuple[dict[str, Tensor], dict]:
    """One picture: features by ``reader|attack|version``, and figures."""
    facts, pictures, opened, words = {}, {}, {}, KEYWORD if model.secret else None
    for name in SHIELDS:
        if name == "trained" and model.kind == "plain":
            continue
        started = time.process_time()
        data = model.compress(x, KEYWORD if name == "sealed" else words, adapt=None if name == "trained" else name)
        facts[f"seconds {name}"] = time.process_time() - started
        pictures[name], stream = model.decompress_tensor(data), bitstream.unpack(data)
        facts |= {f"bytes {name}": len(data), f"code {name}": len(stream.shield[1])}
        y_hat = model.latents(stream)
        opened[name] = round_to_8_bits(model.picture(y_hat, stream.size, None, None, NOTHING))
        if name != "sealed":
            pictures["plain"] = opened[name]
            facts["bytes plain"] = len(data) - sum(len(c) + bitstream.CHUNK_BYTES for _, c in stream.chunks)
            facts["bytes plain"] -= sum(len(s) + bitstream.CHUNK_BYTES for s in stream.slots)
            if words and not torch.equal(round_to_8_bits(model.decompress_tensor(data, words)), pictures["plain"]):
                raise ValueError(f"the full version of a {name} file is not the plain codec's picture")
        else:
            pictures["sealed, full"] = model.decompress_tensor(data, KEYWORD)
    pictures = {name: round_to_8_bits(p) for name, p in pictures.items()} | {"original": x}
    facts |= {f"psnr {name}": psnr(p, x) for name, p in pictures.items() if name != "original"}
    for name in SHIELDS:
        if name in pictures:
            full = pictures["sealed, full" if name == "sealed" else "plain"]
            facts |= {
                f"change {name}": psnr(pictures[name], full),
                f"ssimulacra2 {name}": ssimulacra2(pictures[name], x),
            }
    facts |= {f"ssimulacra2 {name}": ssimulacra2(pictures[name], x) for name in ("plain", "sealed, full")}
    seen = {}
    for attack, process in done.items():
        for version, picture in pictures.items():
            if attack != PUBLISHED and version in ("original", "sealed, full"):
                continue
            for reader in readers if attack == PUBLISHED else readers[:1]:
                seen[f"{reader.name}|{attack}|{version}"] = reader.encode_image(process(picture))[0].clone()
    for version, picture in ({"plain": pictures["plain"]} | opened).items():
        seen[f"{readers[0].name}|{DECODER}|{version}"] = readers[0].encode_image(picture)[0].clone()
    return seen, facts


def report(data: EvalSet, kept: list[tuple[dict[str, Tensor], dict]], readers: list[Target]) -> dict:
    """Rows as `psic_core.lab.limits.Robustness.add` makes them, so that its tables and charts show these."""
    figures = {key: [facts[key] for _, facts in kept] for key in kept[0][1]}
    models = [name for name in SHIELDS if f"bytes {name}" in figures]
    size = {name: sum(figures[f"bytes {name}"]) / sum(figures["bytes plain"]) for name in models}
    rows = []
    for reader in readers:
        names = [key.split("|")[1:] for key in kept[0][0] if key.startswith(f"{reader.name}|")]
        seen = {"|".join(n): torch.stack([f["|".join((reader.name, *n))] for f, _ in kept]) for n in names}
        plain = seen[f"{PUBLISHED}|plain"]
        seen |= {"plain": plain, "original": plain if data.labels is None else seen[f"{PUBLISHED}|original"]}
        correct = {t: c for t, c in task_results(seen, data, Texts(reader)).items() if t != "t2i"}
        for attack in dict.fromkeys(attack for attack, _ in names):
            rates = {}
            for version in ("plain", *models, "sealed, full"):
                if f"{attack}|{version}" in seen:
                    flips = {t: count_flips(c["plain"], c[f"{attack}|{version}"], g) for t, (c, g) in correct.items()}
                    rates[version] = {task: flip_rate([f])._asdict() for task, f in flips.items()}
                    rates[version]["mean"] = flip_rate(list(flips.values()))._asdict()
            level, named = LEVELS.get(attack, "platforms"), attack
            if attack == PUBLISHED and reader is not readers[0]:
                level, named = "unseen", f"read by {reader.name}"
            rows.append({"level": level, "attack": named, "null": rates.pop("plain"), "asr": rates})
    rows.sort(key=lambda row: list(THREATS).index(row["level"]))
    mean = {key: float(np.mean(values)) for key, values in figures.items()}
    return {"models": models, "n": data.size, "mean": mean, "size": size, "rows": rows}


def limited(name: str, root: str, limit: int) -> EvalSet:
    """So many of a set's pictures, spread over it, as they are; ``demo`` are the demo's photos."""
    if name == "demo":
        photos = [(to_tensor(image)[0], PHOTO_CLASSES.index(shows)) for image, shows in demo_photos().values()][:limit]
        labels = torch.tensor([label for _, label in photos])
        return EvalSet(name, len(photos), lambda i: photos[i][0], classes=PHOTO_CLASSES, labels=labels)
    data = eval_set(name, root, side=0)
    chosen = np.linspace(0, data.size - 1, min(limit, data.size)).round().astype(int).tolist()
    return EvalSet(
        name, len(chosen), lambda i: data.picture(chosen[i]), data.captions and [data.captions[i] for i in chosen],
        data.classes or (tuple(dict.fromkeys(IMAGENET_CLASSNAMES)) if name in ("kodak", "camera") else None),
        data.labels if data.labels is None else data.labels[chosen], data.templates[:1], data.attribute_prompts,
        data.attributes if data.attributes is None else data.attributes[chosen],
    )  # fmt: skip


@torch.no_grad()
def main() -> None:
    """Measure, and write ``shields.json``; other data sets of the same checkpoint stay in it."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("checkpoint")
    p.add_argument("dataset", nargs="+")
    p.add_argument("--data-root")
    p.add_argument("--limit", type=int, default=24)
    p.add_argument("--cache", type=Path, default=Path("build/shields"))
    p.add_argument("--out", type=Path, default=data_dir() / "results")
    args = p.parse_args()
    path, about = args.out / "shields.json", {"checkpoint": args.checkpoint}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else about
    sets = before.get("sets", {}) if before["checkpoint"] == args.checkpoint else {}
    model, readers = load_checkpoint(args.checkpoint), [load_target(name) for name in READERS]
    model.card["path"] = args.checkpoint
    weights = f"{Path(args.checkpoint).stem}-{digest(model)[:8]}-{model.config.budget or 0:g}"
    done = attacks(model, args.cache / weights)
    run = args.cache / weights / f"{zlib.crc32(repr((*done, PURIFYING)).encode()):08x}"
    for name in args.dataset:
        data, kept = limited(name, args.data_root, args.limit), []
        folder = run / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in tqdm(range(data.size), name, disable=None):
            file = folder / f"{i} of {data.size}.safetensors"
            if not file.is_file():
                with torch.enable_grad():
                    seen, facts = measure(model, data.picture(i)[None], done, readers)
                file.with_suffix(".json").write_text(json.dumps(facts))
                with whole(file) as part:
                    save_file({k: v.detach() for k, v in seen.items()}, part)
            kept.append((load_file(file), json.loads(file.with_suffix(".json").read_text())))
        sets[name] = report(data, kept, readers) | {"provenance": provenance()}
        write_json(about | {"sets": sets}, path)


if __name__ == "__main__":
    main()
