"""Keeps the figures in README and model cards equal to data/: ``python -m psic_core.readme [--check]``."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from psic_core import figures
from psic_core.checkpoints import load_checkpoint, read_card
from psic_core.config import data_dir, repo_dir
from psic_core.datasets.scenes import Scenes, contact_sheet
from psic_core.images import to_pil, to_tensor
from psic_core.targets import load_target

TASKS = {
    "t2i": "text→image retrieval, R@1",
    "i2t": "image→text retrieval, R@1",
    "classification": "zero-shot classification",
    "attributes": "attributes",
}
COLUMNS = {
    "protected": "protected",
    "wrong_key": "wrong keyword",
    "full": "full (null)",
    "jpeg": "JPEG (null)",
    "noise": "noise (null)",
}


def reports(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """The evaluation reports of the shipped model, by data set."""
    files = sorted((folder or data_dir() / "results").glob("psic-q2-*.json"))
    return {(r := json.loads(f.read_text()))["dataset"]: r for f in files}


def results_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Two Markdown tables: attack success with intervals and nulls; rate and fidelity."""
    head = "| pictures | task | right on the plain codec | " + " | ".join(COLUMNS.values()) + " |"
    lines = ["Attack success rate in %, with 95 % intervals:", "", head, "|---" * (3 + len(COLUMNS)) + "|"]
    for name, report in found.items():
        for task in TASKS:
            if task in report["asr"]:
                cells = " | ".join(_cell(report["asr"][task][c], c == "protected") for c in COLUMNS)
                right = 100 * report["score"][task]["backbone"]
                lines.append(f"| {name} ({report['n']}) | {TASKS[task]} | {right:.1f} % | {cells} |")
    lines += ["", "Rate and fidelity:", "", "| pictures | bpp, plain | bpp, PSIC | PSNR plain | full | protected |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for name, r in found.items():
        p = r["psnr"]
        lines.append(
            f"| {name} ({r['n']}) | {r['bpp_backbone']:.3f} | {r['bpp']:.3f} | {p['backbone']:.2f} dB"
            f" | {p['full']:.2f} dB | {p['protected']:.2f} dB |"
        )
    return "\n".join(lines)


def history_table(names: Sequence[str]) -> str:
    """A Markdown table of the phases that made each shipped checkpoint, from its header."""
    lines = [
        "| checkpoint | stage | steps × batch | pictures from | γ | minutes | hardware | commit |",
        "|---" * 8 + "|",
    ]
    for name in names:
        for phase in read_card(name)["card"]["history"]:
            c = phase["config"]
            attacked = c["stage"] != "plain" and phase["kind"] != "plain"
            lines.append(
                f"| {name} | {c['stage']} | {c['steps']} × {c['batch_size']} | {', '.join(phase['datasets'])}"
                f" | {c['gamma'] if attacked else '–'} | {phase['seconds'] / 60:.0f} | {phase['hardware']}"
                f" | {phase['commit'][:8]}{'+' if '+' in phase['commit'] else ''} |"
            )
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``.

    Raises:
        ValueError: The markers are not there.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in text or end not in text:
        raise ValueError(f"README.md has no {start} ... {end}")
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
    parser.add_argument("--pictures", action="store_true", help="make README's two pictures anew as well")
    args = parser.parse_args()
    if args.pictures:
        make_pictures()
    cards = data_dir() / "checkpoints"
    names = sorted(p.stem for p in cards.glob("p*-q*.safetensors"))
    pages = {
        repo_dir() / "README.md": ("results", results_table(reports())),
        cards / "README.md": ("history", history_table(names)),
    }
    texts = {path: fill(path.read_text(encoding="utf-8"), *part) for path, part in pages.items()}
    return renew(texts, args.check, "python -m psic_core.readme")


def make_pictures() -> None:
    """README's strip and contact sheet.

    The strip shows the first held-out scene that the model reads rightly on the full version: chosen for what the
    codec leaves, not for what the protection does.
    """
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
    figures.save(figures.strip(versions, notes), data_dir() / "results" / "strip.png")
    contact_sheet(40, 8, 128).save(data_dir() / "scenes" / "contact_sheet.jpg", quality=85)


def _cell(estimate: Mapping[str, Any], bold: bool) -> str:
    if estimate["n"] == 0:
        return "–"
    low, high = estimate["ci95"]
    value = f"{100 * estimate['value']:.1f}"
    return f"{f'**{value}**' if bold else value} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    sys.exit(main())
