"""The command line: ``psic`` or ``python -m psic_core``."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from psic_core.app import cli_data, cli_files, cli_training

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

    cli_files.add(partial(_command, commands), DEFAULT_CHECKPOINT)

    p = _command(commands, "rekey", rekey, "give a copy of a model a secret of your own, without training")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    p.add_argument("-o", "--output", type=Path, required=True)
    p.add_argument("--new", required=True, metavar="PASSPHRASE", help="the new owner's passphrase")
    p.add_argument("--old", metavar="PASSPHRASE", help="needed where the checkpoint does not hold its secret")

    cli_training.add(partial(_command, commands), training)
    cli_data.add(partial(_command, commands))

    p = _command(commands, "evaluate", evaluate, "measure a checkpoint on a data set")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    p.add_argument("--plain", help="the plain codec of the same rate (default: the model without its triggers)")
    p.add_argument("--cache", type=Path, help="folder that keeps what was measured: a second run takes seconds")
    p.add_argument("--classes", type=Path, help="for photos: a text file, one class name a line")
    p.add_argument("--target", nargs="+", default=["lite-clip"],
                   help="the model that reads the pictures (%(default)s); further ones go to `transfer`")  # fmt: skip
    _measuring_options(p, read=False, several=True)

    p = _command(commands, "captions", captions, "what a captioner that was never attacked says of each version")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    p.add_argument("--plain", help="the plain codec of the same rate (default: the model without its triggers)")
    p.add_argument("--captioner", default="lite2-captioner",
                   help="or a model of Hugging Face, such as Salesforce/blip2-opt-2.7b (%(default)s)")  # fmt: skip
    p.add_argument("--cache", type=Path, help="folder that keeps what was measured: a second run takes seconds")
    _measuring_options(p, read=False)

    p = _command(commands, "rd", rd, "rate against distortion of several rates, with Bjontegaard differences")
    p.add_argument("--checkpoints", nargs="+", default=[f"psic-q{q}" for q in (1, 2, 3, 4)], help="default: all four")
    p.add_argument("--lpips", action="store_true", help="LPIPS too; fetches AlexNet's weights, once")
    _measuring_options(p, read=False)

    p = _command(commands, "limits", limits, "post-processing, unseen models, rivals who adapt: what is left")
    p.add_argument("checkpoints", nargs="*", default=["psic-q2"], help="default: %(default)s")
    p.add_argument("--target", default="lite-clip", help="the model that they were made against (%(default)s)")
    p.add_argument("--levels", nargs="+", help="some of the threat model's levels; default: all")
    p.add_argument("--cost", type=float, help="scale their triggers until the shield costs so many dB")
    p.add_argument("--limit", type=int, default=150, help="held-out scenes (%(default)s)")
    p.add_argument("--json", type=Path, required=True, metavar="OUT", help="the report")

    p = _command(commands, "wrong-keys", wrong_keys, "what many wrong keywords decode")
    p.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT)
    p.add_argument("--keywords", type=int, default=100, help="how many (%(default)s)")
    _measuring_options(p)
    return top


def rekey(args: argparse.Namespace) -> None:
    """``psic rekey``: the copy does not hold its secret; only the passphrase gives it."""
    from psic_core import keys
    from psic_core.training.checkpoints import load_checkpoint, save_checkpoint

    model = load_checkpoint(args.checkpoint)
    if model.secret is None and not args.old:
        raise ValueError("this checkpoint does not hold its secret; pass --old PASSPHRASE")
    old = keys.secret(args.old) if args.old else model.secret
    keys.rekey(model, old, keys.secret(args.new))
    save_checkpoint(model, args.output, model.card)
    print(f"{args.output}: decodes full with the new passphrase only. Files made before stay readable.")


def evaluate(args: argparse.Namespace) -> None:
    """``psic evaluate``."""
    from psic_core.datasets.eval_sets import eval_set
    from psic_core.lab.evaluate import evaluate as run
    from psic_core.lab.evaluate import table, write_json
    from psic_core.models.vlp import load_target
    from psic_core.training.checkpoints import load_checkpoint

    lines = cli_files.read(args.classes).decode("utf-8").splitlines() if args.classes else []
    names = [line.strip() for line in lines if line.strip()] if args.classes else None
    if len(args.dataset) > 1 and "{dataset}" not in str(args.json):
        raise ValueError(f"{args.json} would be written {len(args.dataset)} times; put {{dataset}} into its name")
    sets = [eval_set(name, args.data_root, args.limit, classes=names) for name in args.dataset]
    plain = load_plain(args.checkpoint, args.plain)
    model = load_checkpoint(args.checkpoint)
    targets = [load_target(name) for name in args.target]
    for data in sets:
        report = run(model, plain, data, targets, args.cache)
        write_json(report | {"checkpoint": str(args.checkpoint)}, str(args.json).replace("{dataset}", data.name))
        print(table(report))


def captions(args: argparse.Namespace) -> None:
    """``psic captions``."""
    from psic_core.datasets.eval_sets import eval_set
    from psic_core.lab.captioner import load_captioner
    from psic_core.lab.captions import caption_report, table
    from psic_core.lab.evaluate import write_json
    from psic_core.training.checkpoints import load_checkpoint

    data = eval_set(args.dataset, args.data_root, args.limit)
    plain = load_plain(args.checkpoint, args.plain)
    captioner = load_captioner(args.captioner)
    report = caption_report(load_checkpoint(args.checkpoint), plain, data, captioner, args.cache)
    write_json(report | {"checkpoint": str(args.checkpoint)}, args.json)
    print(table(report))


def rd(args: argparse.Namespace) -> None:
    """``psic rd``."""
    from psic_core.datasets.eval_sets import eval_set
    from psic_core.lab.evaluate import write_json
    from psic_core.lab.rate_distortion import load_lpips, rate_distortion, table
    from psic_core.training.checkpoints import load_checkpoint

    distance = load_lpips() if args.lpips else None
    pairs = {n: (load_checkpoint(n), load_checkpoint(n, plain=True)) for n in args.checkpoints}
    report = rate_distortion(pairs, eval_set(args.dataset, args.data_root, args.limit), distance)
    write_json(report, args.json)
    print(table(report))


def limits(args: argparse.Namespace) -> None:
    """``psic limits``."""
    from psic_core.app.comparison_tables import limits_table
    from psic_core.lab.evaluate import write_json
    from psic_core.lab.limits import LEVELS, run_limits

    levels = args.levels or tuple(LEVELS)
    report = run_limits(args.checkpoints, args.limit, args.target, levels, args.cost)
    write_json(report, args.json)
    print(limits_table(report))


def wrong_keys(args: argparse.Namespace) -> None:
    """``psic wrong-keys``."""
    from psic_core.datasets.eval_sets import eval_set
    from psic_core.lab.evaluate import write_json
    from psic_core.lab.wrong_keywords import audit, table
    from psic_core.models.vlp import load_target
    from psic_core.training.checkpoints import load_checkpoint

    data = eval_set(args.dataset, args.data_root, args.limit)
    report = audit(load_checkpoint(args.checkpoint), data, load_target(args.target), args.keywords)
    write_json(report | {"checkpoint": str(args.checkpoint)}, args.json)
    print(table(report))


def _measuring_options(p: argparse.ArgumentParser, read: bool = True, several: bool = False) -> None:
    from psic_core.datasets import DATASETS

    p.add_argument("--dataset", required=True, choices=DATASETS, nargs="+" if several else None)
    p.add_argument("--data-root", help="of the data sets (PSIC_DATA_ROOT), or your photos, captioned or in classes")
    p.add_argument("--limit", type=int, help="the first so many pictures")
    each = "the report; of several data sets, {dataset} in its name becomes theirs" if several else "the report"
    p.add_argument("--json", type=Path, required=True, metavar="OUT", help=each)
    if read:
        p.add_argument("--target", default="lite-clip", help="the model that reads the pictures (%(default)s)")


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    p = commands.add_parser(name, help=text, description=text)
    p.set_defaults(run=run)
    return p


def load_plain(checkpoint: str, plain: str | None) -> Any:
    """The plain codec that a model is compared with: one of its own, else the model without its triggers."""
    from psic_core.training.checkpoints import load_checkpoint

    return load_checkpoint(plain) if plain else load_checkpoint(checkpoint, plain=True)
