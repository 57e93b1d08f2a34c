"""The commands that make models: ``psic train``, ``recipe``, ``ablate``, ``publish``, ``train-target``."""

import argparse
import inspect
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args


def add(command: Callable[[str, Any, str], argparse.ArgumentParser], training: bool) -> None:
    """Register the commands; ``train``'s many options only where it is asked for (they load torch)."""
    p = command("train", train, "train one phase: plain, one or two")
    if training:
        _training_options(p)

    p = command("recipe", recipe, "make psic-qN by a named recipe; resumes")
    p.add_argument("name", nargs="?", help="without a name, lists the recipes")
    p.add_argument("--quality", type=int, default=2, help="the rate, 1 to 4 (%(default)s)")
    p.add_argument("-o", "--out", type=Path, default=Path("runs"), help="a folder for each phase is made there")
    p.add_argument("--data-root", dest="root")
    p.add_argument("--dataset", dest="datasets", nargs="+", help="other pictures than the recipe's, as in psic train")
    p.add_argument("--target", help="another target than the recipe's")
    p.add_argument("--pictures", type=int, help="train on about so many of the pictures")
    p.add_argument("--dry-run", action="store_true", help="a few steps of every phase: does it run here at all?")

    p = command("ablate", ablate, "objectives, choices and rivals on equal terms: short trainings from one codec")
    p.add_argument("points", nargs="*", metavar="METHOD[@STRENGTH][#SEED]",
                   help="default: all that the file does not have yet; --list names the methods")  # fmt: skip
    p.add_argument("--list", action="store_true", help="say what there is, and do nothing")
    p.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder of the runs (%(default)s)")
    p.add_argument("--json", type=Path, default=Path("data/results/points.jsonl"), help="%(default)s")
    p.add_argument("--pictures", type=int, default=300, help="held-out scenes to measure on (%(default)s)")
    p.add_argument("--target", default="lite-clip")
    p.add_argument("--weights", type=Path, help="of one bavaft point: write the rival's weights there too, as float16")

    p = command("publish", publish, "write a trained model as psic-qN, in float16")
    p.add_argument("--checkpoint", required=True, help="the last phase's model.safetensors")
    p.add_argument("--quality", type=int, required=True, help="number of the rate")
    p.add_argument("--strength", type=float, default=1.0, help="scales the triggers (%(default)s: as trained)")
    p.add_argument("--label", default="", help="for its name: psic-LABEL-qN")
    p.add_argument("-o", "--output", type=Path, required=True, help="folder")

    p = command("train-target", train_target, "train the heads of lite-clip, or of its like, on Flickr8k and scenes")
    p.add_argument(
        "--target", choices=("lite-clip", "lite1-clip", "lite2-clip"), default="lite-clip", help="default: %(default)s"
    )
    p.add_argument("--data-root")
    p.add_argument("--scenes", type=int, default=2560, help="pictures of scenes (%(default)s)")
    p.add_argument("--cache", type=Path, default=Path("build/cache"))
    p.add_argument("-o", "--output", type=Path, required=True, help="heads file, .safetensors")


def train(args: argparse.Namespace) -> None:
    """``psic train``."""
    from psic_core.config import TrainConfig
    from psic_core.training.phase import Phase, run_phase

    given = {k: v for k, v in vars(args).items() if v is not None}
    config = TrainConfig(**{f.name: given[f.name] for f in fields(TrainConfig) if f.name in given})
    phase = Phase(**{f.name: given[f.name] for f in fields(Phase) if f.name in given})
    if args.architecture:
        phase = replace(phase, codec=replace(phase.codec, architecture=args.architecture))
    run_phase(config, phase, args.out)


def recipe(args: argparse.Namespace) -> None:
    """``psic recipe``."""
    from psic_core.training.recipes import RECIPES, run_recipe

    if not args.name:
        for name, known in RECIPES.items():
            print(f"{name:12} {known.about}")
        return
    chosen = {k: getattr(args, k) for k in ("datasets", "target", "pictures") if getattr(args, k)}
    for path in run_recipe(args.name, args.quality, args.out, args.root, args.dry_run, chosen):
        print(path)


def ablate(args: argparse.Namespace) -> None:
    """``psic ablate``."""
    from psic_core.lab.ablations import RIVALS, SWEEPS, VARIANTS, point
    from psic_core.lab.comparison import publish_bavaft, run_points

    if args.list:
        for name, what in ({n: v.what for n, v in VARIANTS.items()} | RIVALS).items():
            print(f"{name:18} {what}; strengths {', '.join(map(str, SWEEPS.get(name, ('its own',))))}")
        return
    if args.weights and (len(args.points) != 1 or point(args.points[0]).method != "bavaft"):
        raise ValueError(
            f"--weights takes one bavaft point, got {args.points}; write psic ablate bavaft@30 --weights FILE"
        )
    run_points(args.points, args.out, args.json, args.pictures, args.target)
    if args.weights:
        publish_bavaft(point(args.points[0]), args.out, args.weights, args.target)


def publish(args: argparse.Namespace) -> None:
    """``psic publish``."""
    from psic_core.training.phase import publish as write

    print(write(args.checkpoint, args.quality, args.output, args.strength, args.label))


def train_target(args: argparse.Namespace) -> None:
    """``psic train-target``."""
    from psic_core.training.lite_clip_heads import make_lite_clip

    make_lite_clip(args.output, args.data_root, args.scenes, args.cache, args.target)


def _training_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("-o", "--out", type=Path, required=True, help="folder of this run; a run that is there resumes")
    p.add_argument("--init", help="checkpoint to start from (warm start)")
    p.add_argument("--triggers", help="checkpoint to take trained triggers from, such as one of another rate")
    p.add_argument("--architecture", help="of a new model: a name of CompressAI's (bmshj2018-hyperprior)")
    p.add_argument("--transforms", help="checkpoint to take g_a and g_s from, for a new model of another architecture")
    p.add_argument("--kind", choices=("psic", "plain"), help="plain: the backbone alone (default: what --init is)")
    p.add_argument("--dataset", dest="datasets", nargs="+", type=str,
                   help="scenes (default), flickr8k, shards:PATTERN, or folders of pictures")  # fmt: skip
    p.add_argument("--data-root", dest="root")
    p.add_argument("--scenes", type=int, help="pictures of scenes (2560)")
    p.add_argument("--pictures", type=int, help="train on about so many of the pictures, evenly spread")
    p.add_argument("--size", type=int, help="side of the pictures in pixels (160)")
    p.add_argument("--target", help="the model under attack (lite-clip)")
    p.add_argument("--stream", type=_yes_or_no,
                   help="read one shards:PATTERN as a stream, yes or no (default: above 2 GB)")  # fmt: skip
    p.add_argument("--workers", type=int, help="processes that read the stream, beside each training process (2)")
    p.add_argument("--half", action="store_true", help="store the finished checkpoint as float16")
    config, said = _train_config()
    for f in fields(config):
        options = (
            {"choices": get_args(f.type)} if get_args(f.type) else {"type": _yes_or_no if f.type is bool else f.type}
        )
        p.add_argument("--" + f.name.replace("_", "-"), help=f"{said[f.name]} (default {f.default})", **options)


def _yes_or_no(word: str) -> bool:
    if word.lower() not in ("yes", "no", "true", "false"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither yes nor no")
    return word.lower() in ("yes", "true")


def _train_config() -> tuple[type, dict[str, str]]:
    """The options' class, and what its source says beside each field: their only description."""
    from psic_core.config import TrainConfig

    source = inspect.getsource(TrainConfig)
    said = re.findall(r"^    (\w+): .*?  # (.+)$", source, re.MULTILINE)
    return TrainConfig, {name: comment.replace("%", "%%") for name, comment in said}
