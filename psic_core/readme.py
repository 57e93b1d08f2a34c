"""Keeps the figures in README and model cards equal to data/: ``python -m psic_core.readme [--check]``."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from psic_core import charts, codec_table, comparison_tables, figures, limits, scaling, tables
from psic_core.ablations import VARIANTS
from psic_core.checkpoints import load_checkpoint
from psic_core.comparison import read_points
from psic_core.config import data_dir, repo_dir
from psic_core.datasets.scenes import Scenes, contact_sheet
from psic_core.images import to_pil, to_tensor
from psic_core.targets import load_target


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: The markers are not there.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text or end not in text:
        raise ValueError(f"the page has no {start} ... {end}")
    before, rest = text.split(start, 1)
    return f"{before}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"


def renew(texts: Mapping[Path, str], check: bool, command: str) -> int:
    """Write generated files where they have changed; with ``check`` only name them, and the command that mends it.

    Returns:
        The exit status: 1 where ``check`` has found a stale file.
    """
    stale = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if check:
            print(f"{path} is stale: run {command}")
        else:
            path.write_text(texts[path], encoding="utf-8")
    return int(check and bool(stale))


def main() -> int:
    """Rewrite both pages, or with ``--check`` say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is stale")
    parser.add_argument("--pictures", action="store_true", help="make the pages' pictures anew as well")
    args = parser.parse_args()
    if args.pictures:
        make_pictures()
    texts = {}
    for page, parts in pages().items():
        texts[page] = page.read_text(encoding="utf-8")
        for name, content in parts.items():
            texts[page] = fill(texts[page], name, content)
    return renew(texts, args.check, "python -m psic_core.readme")


def pages() -> dict[Path, dict[str, str]]:
    """What each generated part of each page should say."""
    results, cards = data_dir() / "results", data_dir() / "checkpoints"
    found, refined = tables.reports(results), tables.reports(results, "refined")
    points = read_points(results / "points.jsonl")
    attacked = _report("limits")
    shields = {"psic-q2": "captions-q2-flickr8k", "psic-hardened-q2": "hardened-captions"}
    captioned = {name: _report(file) for name, file in shields.items()}
    own = [p.stem for p in cards.glob("psic-*.safetensors") if "-light-" not in p.stem]  # light: psic-qN's, scaled
    names = sorted(own, key=lambda n: (n.count("-"), n))
    others = {p.stem[6:-7]: json.loads(p.read_text()) for p in sorted(results.glob("other-*-scenes.json"))}
    return {
        repo_dir() / "README.md": {
            "results": tables.success_table(found),
            "rates": tables.rates_table(found),
            "refined": tables.success_table(refined),
            "claims": comparison_tables.claims_table(points),
        },
        results / "README.md": {
            "recall": tables.recall_table(found),
            "scores": tables.scores_table(found),
            "refined": tables.refined_table(refined),
            "refined-transfer": tables.transfer_table(refined),
            "denominators": tables.denominators_table(found),
            "transfer": tables.transfer_table(found),
            "captions": tables.captions_table(tables.reports(results, "captions")["flickr8k"]),
            "kodak": tables.rd_table(_report("rd-kodak")),
            "flickr8k-dev": tables.rd_table(_report("rd-flickr8k-dev")),
            "keywords": tables.keywords_table(tables.audits(results)),
            "speed": tables.speed_table(_report("speed")),
            "scaling": scaling.table(_report("scaling")),
            "codecs": codec_table.table(_report("codecs")),
            "others": tables.others_table(others),
            "limits-captions": tables.shields_captions_table(captioned),
            "hardening": limits.options_table([_report(f"hardening{of}") for of in ("", "-rival", "-stream")]),
            "hardening-fresh": limits.options_table([_report(f"hardening-fresh{of}") for of in ("", "-rival")]),
            "rivals": limits.table(_report("hardening-fresh-rival")),
            "limits": limits.table(attacked),
            "limits-tasks": limits.table(attacked, tasks=True),
            "frontier-75": comparison_tables.frontier_table(points, comparison_tables.LEVELS[0]),
            "frontier-100": comparison_tables.frontier_table(points, comparison_tables.LEVELS[1]),
            "claims": comparison_tables.claims_table(points),
            "changes": comparison_tables.changes_table(points),
        },
        cards / "README.md": {"history": tables.history_table(names)},
    }


def _report(name: str) -> dict[str, Any]:
    return json.loads((data_dir() / "results" / f"{name}.json").read_text(encoding="utf-8"))


def make_pictures() -> None:
    """README's strip and contact sheet, the paper's Fig. 3 and 4 from our results, and speed over sizes.

    The strip shows the first held-out scene that the model reads rightly on the full version: chosen for what the
    codec leaves, not for what the protection does.
    """
    results = data_dir() / "results"
    found, captions = tables.reports(results), tables.reports(results, "captions")["flickr8k"]
    model, target, scenes = load_checkpoint("psic-q2"), load_target("lite-clip"), Scenes("test", 40, 160)
    names = target.encode_text([f"a photo of a {c}" for c in scenes.classes])
    for i in range(len(scenes)):
        original = to_pil(scenes[i].image[None])
        data = model.compress(original, keyword="my cat")
        decoded = {"full": "my cat", "protected": None, "wrong keyword": "my dog"}
        versions = {"original": original} | {v: model.decompress(data, k) for v, k in decoded.items()}
        beliefs = {}
        for version, picture in versions.items():
            beliefs[version] = target.probabilities(target.encode_image(to_tensor(picture)), names)[0]
        if int(beliefs["full"].argmax()) == scenes[i].class_index:
            break
    notes = {v: f"“{scenes.classes[int(p.argmax())]}” {100 * float(p.max()):.0f} %" for v, p in beliefs.items()}
    figures.save(figures.strip(versions, notes), results / "strip.png")
    figures.save(charts.performance(found, captions), results / "performance.png")
    figures.save(charts.success(found), results / "success.png")
    figures.save(charts.fidelity(_report("rd-kodak")), results / "fidelity.png")
    speed = _report("speed")
    if any("task" in measured for measured in speed.values()):  # else it is of a time before sizes were measured
        figures.save(charts.growth(speed), results / "speed.png")
    points = read_points(results / "points.jsonl")
    figures.save(charts.frontier(points), results / "frontier.png")
    figures.save(charts.changes(points, [m for m in VARIANTS if m != "uaeo"]), results / "changes.png")
    attacked = _report("limits")
    figures.save(charts.limits(attacked, limits.SUMMARY), results / "limits.png")
    contact_sheet(40, 8, 128).save(data_dir() / "scenes" / "contact_sheet.jpg", quality=85)


if __name__ == "__main__":
    sys.exit(main())
