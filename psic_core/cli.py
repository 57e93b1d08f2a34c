"""The command line: ``psic`` or ``python -m psic_core``."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

DEFAULT_CHECKPOINT = "psic-q2"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors of the user's are one sentence on stderr and exit status 2."""
    words = sys.argv[1:] if argv is None else argv
    args = parser(training="train" in words).parse_args(words)
    try:
        args.run(args)
    except (ValueError, FileNotFoundError, OSError) as error:
        print(f"psic {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def parser(training: bool = True) -> argparse.ArgumentParser:
    """The argument parser; heavy libraries load only for a command, or for ``train``'s options (``training``)."""
    top = argparse.ArgumentParser("psic", description="Privacy-Shielded Image Compression")
    commands = top.add_subparsers(dest="command", required=True)

    p = _command(commands, "encode", encode, "write a photo to a .psic file")
    p.add_argument("photo", type=Path)
    p.add_argument("-o", "--output", type=Path, required=True)
    p.add_argument("--keyword", help="words that will decode the full version")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="file or shipped name (%(default)s)")
    p.add_argument("--passphrase", help="the owner's, where the checkpoint does not hold its secret")

    p = _command(commands, "decode", decode, "decode a .psic file: protected, or full with the keyword")
    p.add_argument("file", type=Path)
    p.add_argument("-o", "--output", type=Path, required=True)
    p.add_argument("--keyword", help="without it, or with a wrong one, the protected version is decoded")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)

    p = _command(commands, "info", info, "what a .psic file says of itself")
    p.add_argument("file", type=Path)
    p.add_argument("--json", action="store_true")

    p = _command(commands, "rekey", rekey, "give a copy of a model a secret of your own, without training")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    p.add_argument("-o", "--output", type=Path, required=True)
    p.add_argument("--new", required=True, metavar="PASSPHRASE", help="the new owner's passphrase")
    p.add_argument("--old", metavar="PASSPHRASE", help="needed where the checkpoint does not hold its secret")

    p = _command(commands, "train", train, "train one phase: plain, one or two")
    if training:
        _training_options(p)

    p = _command(
        commands, "recipe", recipe, "make a pair psic-qN, plain-qN by a named recipe; resumes where it stopped"
    )
    p.add_argument("name", nargs="?", help="without a name, lists the recipes")
    p.add_argument("--quality", type=int, default=2, help="the rate, 1 to 4 (%(default)s)")
    p.add_argument("-o", "--out", type=Path, default=Path("runs"), help="a folder for each phase is made there")
    p.add_argument("--data-root", dest="root")
    p.add_argument("--dataset", dest="datasets", nargs="+", help="other pictures than the recipe's, as in psic train")
    p.add_argument("--target", help="another target than the recipe's")
    p.add_argument("--pictures", type=int, help="train on about so many of the pictures")
    p.add_argument("--dry-run", action="store_true", help="a few steps of every phase: does it run here at all?")

    p = _command(commands, "publish", publish, "write psic-qN and the plain codec inside it, plain-qN, as float16")
    p.add_argument("--checkpoint", required=True, help="the last phase's model.safetensors")
    p.add_argument("--quality", type=int, required=True, help="number of the rate")
    p.add_argument("--strength", type=float, default=1.0, help="scales the triggers (%(default)s: as trained)")
    p.add_argument("-o", "--output", type=Path, required=True, help="folder")

    p = _command(commands, "train-target", train_target, "train lite-clip's heads on Flickr8k and scenes")
    p.add_argument("--data-root")
    p.add_argument("--scenes", type=int, default=2560, help="pictures of scenes (%(default)s)")
    p.add_argument("--cache", type=Path, default=Path("build/cache"))
    p.add_argument("-o", "--output", type=Path, required=True, help="heads file, .safetensors")

    p = _command(commands, "evaluate", evaluate, "measure a checkpoint on a data set")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    p.add_argument("--plain", help="the plain codec of the same rate (default: plain-qN beside psic-qN)")
    p.add_argument("--dataset", required=True, choices=("scenes", "flickr8k", "celeba", "imagenet", "photos"))
    p.add_argument("--data-root", help="folder of the data sets (PSIC_DATA_ROOT); for photos, of the pictures")
    p.add_argument("--target", default="lite-clip")
    p.add_argument("--limit", type=int)
    p.add_argument("--classes", type=Path, help="for photos: a text file, one class name a line")
    p.add_argument("--json", type=Path, required=True, metavar="OUT")
    return top


def encode(args: argparse.Namespace) -> None:
    """``psic encode``."""
    from psic_core import keys
    from psic_core.checkpoints import load_checkpoint
    from psic_core.images import load_image

    image, model = load_image(args.photo), load_checkpoint(args.checkpoint)
    if args.passphrase:
        model.secret = keys.secret(args.passphrase)
    if args.keyword and model.secret is None:
        raise ValueError("this checkpoint does not hold its secret; pass --passphrase PASSPHRASE")
    data = model.compress(image, args.keyword)
    _write(args.output, data)
    width, height = image.size
    print(f"{args.output}: {len(data)} bytes, {8 * len(data) / width / height:.3f} bpp, {width}x{height}")


def decode(args: argparse.Namespace) -> None:
    """``psic decode``."""
    from psic_core.checkpoints import load_checkpoint

    image = load_checkpoint(args.checkpoint).decompress(_read(args.file), args.keyword)
    partial = args.output.with_name(args.output.name + ".partial")
    if args.output.suffix.lower() not in (".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg"):
        raise ValueError(f"cannot tell the picture format of {str(args.output)!r}; end its name in .png")
    image.save(partial, format={"jpg": "jpeg", "tif": "tiff"}.get(s := args.output.suffix[1:].lower(), s))
    os.replace(partial, args.output)


def info(args: argparse.Namespace) -> None:
    """``psic info``."""
    from psic_core.bitstream import describe

    facts = describe(_read(args.file))
    print(json.dumps(facts, indent=1) if args.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))


def rekey(args: argparse.Namespace) -> None:
    """``psic rekey``: the copy does not hold its secret; only the passphrase gives it."""
    from psic_core import keys
    from psic_core.checkpoints import load_checkpoint, save_checkpoint

    model = load_checkpoint(args.checkpoint)
    if model.secret is None and not args.old:
        raise ValueError("this checkpoint does not hold its secret; pass --old PASSPHRASE")
    old = keys.secret(args.old) if args.old else model.secret
    keys.rekey(model, old, keys.secret(args.new))
    save_checkpoint(model, args.output, model.card)
    print(f"{args.output}: decodes full with the new passphrase only. Files made before stay readable.")


def train(args: argparse.Namespace) -> None:
    """``psic train``."""
    from psic_core.config import TrainConfig
    from psic_core.recipes import Phase, run_phase

    given = {k: v for k, v in vars(args).items() if v is not None}
    config = TrainConfig(**{f.name: given[f.name] for f in fields(TrainConfig) if f.name in given})
    phase = Phase(**{f.name: given[f.name] for f in fields(Phase) if f.name in given})
    run_phase(config, phase, args.out)


def recipe(args: argparse.Namespace) -> None:
    """``psic recipe``."""
    from psic_core.presets import RECIPES, run_recipe

    if not args.name:
        for name, known in RECIPES.items():
            print(f"{name:12} {known.about}")
        return
    chosen = {"datasets": tuple(args.datasets or ()), "target": args.target, "pictures": args.pictures}
    paths = run_recipe(
        args.name, args.quality, args.out, args.root, args.dry_run, {k: v for k, v in chosen.items() if v}
    )
    for path in paths:
        print(path)


def publish(args: argparse.Namespace) -> None:
    """``psic publish``."""
    from psic_core.recipes import publish as write

    for path in write(args.checkpoint, args.quality, args.output, args.strength):
        print(path)


def train_target(args: argparse.Namespace) -> None:
    """``psic train-target``."""
    from psic_core.recipes import make_lite_clip

    make_lite_clip(args.output, args.data_root, args.scenes, args.cache)


def evaluate(args: argparse.Namespace) -> None:
    """``psic evaluate``."""
    from psic_core.checkpoints import load_checkpoint
    from psic_core.evaluation import eval_set, table, write_json
    from psic_core.evaluation import evaluate as run
    from psic_core.targets import load_target

    lines = _read(args.classes).decode("utf-8").splitlines() if args.classes else []
    names = [line.strip() for line in lines if line.strip()] if args.classes else None
    data = eval_set(args.dataset, args.data_root, args.limit, classes=names)
    plain = load_checkpoint(args.plain or _plain_beside(args.checkpoint))
    report = run(load_checkpoint(args.checkpoint), plain, data, load_target(args.target))
    write_json(report | {"checkpoint": str(args.checkpoint)}, args.json)
    print(table(report))


def _training_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("-o", "--out", type=Path, required=True, help="folder of this run; a run that is there resumes")
    p.add_argument("--init", help="checkpoint to start from (warm start)")
    p.add_argument("--triggers", help="checkpoint to take trained triggers from, such as one of another rate")
    p.add_argument("--kind", choices=("psic", "plain"), help="plain: the backbone alone (default: what --init is)")
    p.add_argument("--dataset", dest="datasets", nargs="+", type=str,
                   help="scenes (default), flickr8k, shards:PATTERN, or folders of pictures")  # fmt: skip
    p.add_argument("--data-root", dest="root")
    p.add_argument("--scenes", type=int, help="pictures of scenes (2560)")
    p.add_argument("--pictures", type=int, help="train on about so many of the pictures, evenly spread")
    p.add_argument("--size", type=int, help="side of the pictures in pixels (160)")
    p.add_argument("--target", help="the model under attack (lite-clip)")
    p.add_argument("--half", action="store_true", help="store the finished checkpoint as float16")
    for f in _train_fields():
        options = (
            {"choices": get_args(f.type)} if get_args(f.type) else {"type": _yes_or_no if f.type is bool else f.type}
        )
        p.add_argument("--" + f.name.replace("_", "-"), help=f"default {f.default}", **options)


def _yes_or_no(word: str) -> bool:
    if word.lower() not in ("yes", "no", "true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither yes nor no")
    return word.lower() in ("yes", "true")


def _train_fields() -> tuple[Any, ...]:
    from psic_core.config import TrainConfig

    return fields(TrainConfig)


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    p = commands.add_parser(name, help=text, description=text)
    p.set_defaults(run=run)
    return p


def _plain_beside(checkpoint: str) -> str:
    path = Path(checkpoint)
    if not path.name.startswith("psic-"):
        raise ValueError(f"no plain codec is known for {checkpoint!r}; pass --plain CHECKPOINT")
    return str(path.with_name("plain-" + path.name.removeprefix("psic-")))


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    return path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
