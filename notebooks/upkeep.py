"""Upkeep of the pages: README's and the cards' tables, the pictures, the Colab cells, the notebooks' stored outputs.

``python notebooks/upkeep.py`` rewrites what ``data/`` and the notebooks say; ``--check`` only says what is stale.
"""

import argparse
import base64
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nbformat
import numpy as np
import papermill
from kernels import own_kernels
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from psic_core.app import figures, tables
from psic_core.config import data_dir, repo_dir
from psic_core.datasets.eval_sets import PHOTO_CLASSES
from psic_core.datasets.photos import demo_photos
from psic_core.datasets.scenes import Scenes
from psic_core.lab.comparison import METHODS, decibels, read_points, success
from psic_core.metrics import Estimate
from psic_core.models.images import to_pil, to_tensor
from psic_core.models.vlp import load_target
from psic_core.training.checkpoints import load_checkpoint, read_card

COLAB_SAYS = "On Colab the next cell installs what the session lacks and changes nothing else; elsewhere it is idle."
COLAB = Path(__file__).with_name("colab_cell.py")
LARGEST_PNG = 60_000  # bytes; a larger picture is stored as JPEG,
WIDEST = 1200  # of so many pixels at most
BY_SIDE, BY_COST = "labels changed (%) by the shorter side (px)", "labels changed (%), protected against full (dB)"
LONG_LIVED = ("papermill", "widgets")  # metadata that a stored notebook need not keep


def main() -> int:
    """Rewrite all pages, or with ``--check`` say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is stale")
    parser.add_argument("--pictures", action="store_true", help="first make the pages' pictures anew")
    parser.add_argument("--store", nargs="*", metavar="NN", help="first execute notebooks and solutions (default: all)")
    args = parser.parse_args()
    if args.pictures:
        make_pictures()
    for path in (*notebooks(), *solutions()) if args.store is not None else ():
        if not args.store or path.stem[:2] in args.store:
            print(f"executing {path.relative_to(repo_dir())}", flush=True)
            store(path)
    texts = {path: with_colab(path) for path in (*notebooks(), *solutions())}
    for page, parts in pages().items():
        texts[page] = page.read_text(encoding="utf-8")
        for name, content in parts.items():
            texts[page] = fill(texts[page], name, content)
    stale = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        if args.check:
            print(f"{path} is stale: run python notebooks/upkeep.py")
        else:
            path.write_text(texts[path], encoding="utf-8")
    return int(args.check and bool(stale))


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


# --- tables and pictures of the pages ------------------------------------------------------------------


def pages() -> dict[Path, dict[str, str]]:
    """What each generated part of each page should say."""
    results, cards = data_dir() / "results", data_dir() / "checkpoints"
    found = tables.reports(results)
    points = read_points(results / "points.jsonl")
    names = sorted((p.stem for p in cards.glob("psic-*.safetensors")), key=lambda n: (n.count("-"), n))
    return {
        repo_dir() / "README.md": {
            "shields": _if_measured(front_table, "shields"),
            "results": tables.success_table(found),
            "course": course_table(),
        },
        results / "README.md": {
            "rates": tables.rates_table(found),
            "claims": tables.claims_table(points),
            "recall": recall_table(found),
            "captions": tables.captions_table(tables.reports(results, "captions")["flickr8k"]),
            "kodak": tables.rd_table(_report("rd-kodak")),
            "limits": tables.limits_table(_report("limits")),
            "purified": _if_measured(tables.limits_table, "purified"),
            "sizes": _if_measured(tables.sizes_table, "sizes"),
            "platforms": _if_measured(platforms_table, "sizes"),
            "shields": _if_measured(shields_table, "shields"),
            "threats": _if_measured(threats_table, "shields"),
            "budgets": _if_measured(tables.sizes_table, "budgets"),
            "ablations": tables.ablations_table(points),
        },
        cards / "README.md": {"history": history_table(names), "readers": readers_table(found)},
    }


def history_table(names: Sequence[str]) -> str:
    """The phases that made the shipped checkpoints, each once, from their headers."""
    seen: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for name in names:
        card = read_card(name)
        for phase in card["card"]["history"]:
            phase.setdefault("budget", card["config"]["budget"])
            identity = json.dumps([phase["config"], phase["init"], phase["seconds"]])
            seen.setdefault(identity, (phase, []))[1].append(Path(name).stem.removeprefix("psic-"))
    head = ["made", "stage", "λ", "steps × batch", "pictures from", "budget", "minutes", "hardware", "commit"]
    rows = []
    for phase, users in seen.values():
        c = phase["config"]
        commit = phase["commit"][:8] + ("+" if "+" in phase["commit"] else "")
        cells = [" ".join(sorted(set(users))), c["stage"], c["lmbda"], f"{c['steps']} × {c['batch_size']}"]
        last = phase["budget"]
        budget = f"{c.get('first_budget') or last:g} to {last:g}" if last and c["stage"] != "plain" else "–"
        pictures = phase.get("datasets") or phase["dataset"]  # the codecs' own phases
        cells += [", ".join(pictures), budget, f"{phase['seconds'] / 60:.0f}"]
        rows.append([*cells, phase["hardware"], commit])
    return tables.markdown(head, rows)


def _report(name: str) -> dict[str, Any]:
    return json.loads((data_dir() / "results" / f"{name}.json").read_text(encoding="utf-8"))


def _if_measured(table: Callable[[dict[str, Any]], str], name: str) -> str:
    return table(_report(name)) if (data_dir() / "results" / f"{name}.json").is_file() else "Not measured yet."


def recall_table(found: tables.Reports) -> str:
    """R@1, R@5 and R@10, the mean over the rates; both galleries of text→image retrieval."""
    names = {"t2i": "text→image", "t2i_single": "text→image, the rest of the gallery plain", "i2t": "image→text"}
    rows = []
    for name, by_rate in found.items():
        for task in (t for t in names if t in next(iter(by_rate.values())).get("recall", {})):
            recalls = [r["recall"][task] for r in by_rate.values()]
            cells = [
                " / ".join(
                    f"{100 * fmean(r[v][k] for r in recalls):.1f}" for k in ("1", "5", "10") if k in recalls[0]["plain"]
                )
                for v in ("original", "plain", "protected")
            ]
            rows.append([name, names[task], *cells])
    return tables.markdown(["pictures", "R@1 / R@5 / R@10 in %", "original", "plain = full", "protected"], rows)


def readers_table(found: tables.Reports) -> str:
    """What the readers get right on originals and on the plain codec's pictures, rate by rate, in percent."""
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    rows = []
    for name, by_rate in found.items():
        first = next(iter(by_rate.values()))
        for reader in (first["target"], *first["transfer"]):
            scores = {q: (r if reader == r["target"] else r["transfer"][reader])["score"] for q, r in by_rate.items()}
            for task in (t for t in ("t2i", "i2t", "classification", "attributes") if t in first["score"]):
                original = 100 * next(iter(scores.values()))[task]["original"]
                cells = [f"{100 * scores[q][task]['plain']:.1f}" if q in scores else "–" for q in rates]
                rows.append([f"{name} ({first['n']})", task, reader, f"{original:.1f}", *cells])
    return tables.markdown(["pictures", "task", "reader", "original", *(f"q{q}" for q in rates)], rows)


def platforms_table(report: Mapping[str, Any]) -> str:
    """The same behind each platform: protected and, in brackets, the plain codec's picture behind it."""
    found = tables.by_size(report)
    cells: dict[str, list[str]] = {}
    for r in found.values():
        for platform, by in r["rates"].items():
            shown = f"{100 * by['protected'].value:.1f} ({100 * by['plain'].value:.1f})"
            cells.setdefault(platform, []).append(shown)
    return tables.markdown(["platform", *(side for side, _ in found)], [[name, *row] for name, row in cells.items()])


def shields_table(report: Mapping[str, Any]) -> str:
    """What each shield does and costs, data set by data set."""
    head = ["pictures", "shield", "read wrongly", "its full version (null)", "protected against full"]
    head += ["SSIMULACRA2, full → protected", "file", "code", "s of a core"]
    rows = []
    for name, found in report["sets"].items():
        rates, mean = found["rows"][0]["asr"], found["mean"]
        for shield in found["models"]:
            own = "sealed, full" if shield == "sealed" else "plain"
            null = rates[own]["mean"] if own in rates else found["rows"][0]["null"]["mean"]
            cells = [
                f"{name} ({found['n']})",
                shield,
                *(tables.estimate(Estimate(**r)) for r in (rates[shield]["mean"], null)),
            ]
            cells += [f"{mean[f'change {shield}']:.1f} dB"]
            cells += [f"{mean[f'ssimulacra2 {own}']:.0f} → {mean[f'ssimulacra2 {shield}']:.0f}"]
            cells += [
                f"× {found['size'][shield]:.3f}",
                f"{mean[f'code {shield}']:.0f} B",
                f"{mean[f'seconds {shield}']:.0f}",
            ]
            rows.append(cells)
    return tables.markdown(head, rows)


def front_table(report: Mapping[str, Any]) -> str:
    """README's lines on the three shields: the demo's photos among twenty names, Kodak's among ImageNet's thousand."""
    sets = {name: report["sets"][name] for name in ("demo", "kodak")}
    where = {
        "trained": "by the triggers, when decoding (the paper's)",
        "carried": "searched for this photo when encoding, `--adapt carried`; its code lies in the file",
        "sealed": "as carried, but added before coding, `--adapt sealed`; its code is encrypted",
    }
    head = ["shield", "where the change is made", *(f"{name} ({found['n']})" for name, found in sets.items())]
    head += ["protected against full", "s of a core to encode"]
    rows = []
    for shield, text in where.items():
        wrong = [f"{100 * s['rows'][0]['asr'][shield]['mean']['value']:.0f} %" for s in sets.values()]
        decibels, seconds = (
            np.mean([s["mean"][f"{key} {shield}"] for s in sets.values()]) for key in ("change", "seconds")
        )
        rows.append([shield, text, *wrong, f"{decibels:.1f} dB", f"{seconds:.0f}"])
    return tables.markdown(head, rows)


def threats_table(report: Mapping[str, Any]) -> str:
    """What each attack leaves of the three shields: the mean over the data sets, each picture counting once."""
    sets = list(report["sets"].values())
    shields = sets[0]["models"]
    rows: dict[str, list[str]] = {}
    for row in sets[0]["rows"]:
        same = [next(r for r in found["rows"] if r["attack"] == row["attack"]) for found in sets]
        counted = [found["n"] for found in sets]
        rates = [[r["null"] for r in same], *([r["asr"][s] for r in same] for s in shields)]
        cells = [np.average([r["mean"]["value"] for r in by], weights=counted) for by in rates]
        rows[row["attack"]] = [f"{100 * value:.0f}" for value in cells]
    return tables.markdown(["attack", "null", *shields], [[name, *cells] for name, cells in rows.items()])


def make_pictures() -> None:
    """README's strip and contact sheet, and the paper's Fig. 3 and 4, ablations and limits from our results.

    The strip shows the demo's cup of coffee with a shield made for it.
    """
    results = data_dir() / "results"
    found, captions = tables.reports(results), tables.reports(results, "captions")["flickr8k"]
    model, target, original = load_checkpoint("psic-q4"), load_target("lite-clip"), demo_photos()["coffee"][0]
    names = target.encode_text([f"a photo of a {c}" for c in PHOTO_CLASSES])
    data = model.compress(original, keyword="my cat", adapt="carried")
    decoded = {"full": "my cat", "protected": None, "wrong keyword": "my dog"}
    versions = {"original": original} | {v: model.decompress(data, k) for v, k in decoded.items()}
    notes = {}
    for version, picture in versions.items():
        belief = target.probabilities(target.encode_image(to_tensor(picture)), names)[0]
        notes[version] = f"“{PHOTO_CLASSES[int(belief.argmax())]}” {100 * float(belief.max()):.0f} %"
    figures.save(figures.strip(versions, notes), results / "strip.png")
    points = read_points(results / "points.jsonl")
    drawn = {
        "performance": figures.against_rate(score_panels(found, captions)),
        "fidelity": figures.against_rate(tables.fidelity_panels(_report("rd-kodak"))),
        "frontier": figures.frontier(
            {m: seen for m in METHODS if (seen := list(zip(decibels(points, m), success(points, m), strict=True)))}
        ),
        "limits": figures.limits(_report("limits")),
    }
    if (results / "sizes.json").is_file():
        panels = sizes_panels(_report("sizes"), _report("budgets"))
        drawn["sizes"] = figures.against_rate(panels, axis="")
    for name, figure in drawn.items():
        figures.save(figure, results / f"{name}.png")
    contact_sheet().save(data_dir() / "scenes" / "contact_sheet.jpg", quality=85)


def score_panels(found: tables.Reports, captions: Mapping[int, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Fig. 3 for `figures.against_rate`: what the model reads of each version against the rate, in percent.

    Args:
        found: From `reports`.
        captions: Of one data set, by quality: adds BLEU@4 and CIDEr.
    """
    panels = {}
    for name, task in tables.PAPER:
        if name in found:
            rates = found[name].values()
            curves = {v: [(r["bpp"], 100 * r["score"][task][v]) for r in rates] for v in tables.DRAWN}
            panels[f"{tables.TASK_TITLES[task]}, {name} (%)"] = curves
    for score in ("bleu4", "cider") if captions else ():
        rates = captions.values()
        panels[f"captions, {score} (%)"] = {
            v: [(r["bpp"], 100 * r["scores"][v][score]) for r in rates] for v in tables.DRAWN
        }
    return panels


def sizes_panels(sizes: Mapping[str, Any], frontier: Mapping[str, Any]) -> dict[str, Any]:
    """For `figures.against_rate`: labels that change against the shorter side, and against what the shield costs."""
    panels: dict[str, dict[str, list[tuple[Any, float]]]] = {BY_SIDE: {}, BY_COST: {}}
    for (side, _), r in tables.by_size(sizes).items():
        drawn = {v: r["rates"]["as published"][v] for v in ("protected", "jpeg", "noise")}
        drawn |= {platform: by["protected"] for platform, by in r["rates"].items() if platform != "as published"}
        for name, rate in drawn.items():
            shown = "native" if side == "as they are" else side.removesuffix(" px")
            panels[BY_SIDE].setdefault(name, []).append((shown, 100 * rate.value))
    for r in tables.by_size(frontier).values():
        for name in ("protected", "jpeg", "noise"):
            panels[BY_COST].setdefault(name, []).append((r["change"], 100 * r["rates"]["as published"][name].value))
    return panels


def contact_sheet(n: int = 40, columns: int = 8, size: int = 128) -> Image.Image:
    """The first test scenes on one sheet."""
    scenes, sheet = Scenes("test", n, size), Image.new("RGB", (columns * size, -(-n // columns) * size), "white")
    for i in range(n):
        row, column = divmod(i, columns)
        sheet.paste(to_pil(scenes[i].image[None]), (column * size, row * size))
    return sheet


# --- notebooks ---------------------------------------------------------------------------------------------


def notebooks() -> list[Path]:
    """The course in order."""
    return sorted((repo_dir() / "notebooks").glob("[0-9]*.ipynb"))


def solutions() -> list[Path]:
    """The exercises' solutions, one notebook for each of the course."""
    return sorted((repo_dir() / "notebooks" / "solutions").glob("[0-9]*.ipynb"))


def repository() -> str:
    """The project's address: the one line of pyproject.toml that a fork changes.

    Raises:
        ValueError: pyproject.toml names none.
    """
    text = (repo_dir() / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^Repository = "(https://[^"]+)"', text, re.MULTILINE)
    if not found:
        raise ValueError('pyproject.toml has no line `Repository = "https://..."` under [project.urls]')
    return found[1]


def course_table() -> str:
    """README's table, from the notebooks' metadata."""
    owner = repository().removeprefix("https://github.com/")
    rows = []
    for path in notebooks():
        about = nbformat.read(path, as_version=4).metadata["psic"]
        colab = f"[Colab](https://colab.research.google.com/github/{owner}/blob/main/notebooks/{path.name})"
        solution = f"[solutions](notebooks/solutions/{path.name})"
        title = f"[{path.stem[:2]} {about['title']}](notebooks/{path.name})"
        rows.append([title, about["goal"], about["minutes_cpu"], about["gpu"], f"{colab}, {solution}"])
    return tables.markdown(["notebook", "goal", "minutes on two cores", "a GPU", "open"], rows)


def with_colab(path: Path) -> str:
    """A notebook's file with the Colab cell and the sentence before it, after the opening where it had none."""
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    place = next((i for i, cell in enumerate(cells) if cell.cell_type == "code" and "google.colab" in cell.source), 0)
    if not place:
        place = 2
        cells[1:1] = [new_markdown_cell(id="colab-says"), new_code_cell(id="colab")]
    address = f'REPOSITORY = "{repository()}"'
    cells[place].source = re.sub(r'REPOSITORY = "[^"]*"', address, COLAB.read_text(encoding="utf-8").rstrip())
    cells[place - 1].source = COLAB_SAYS
    return nbformat.writes(notebook) + "\n"


def execute(path: Path, result: Path, parameters: Mapping[str, Any], **options: Any) -> NotebookNode:
    """Execute a notebook in its own folder.

    Args:
        path: The notebook.
        result: Where the executed one goes.
        parameters: What its cell of that tag is followed by.
        **options: For `papermill.execute_notebook`.

    Raises:
        PapermillExecutionError: A cell failed.
        DeadKernelError: The kernel ended.
    """
    about = {"kernel_name": "python3", "cwd": str(path.parent), "progress_bar": False}
    with own_kernels():
        return papermill.execute_notebook(str(path), str(result), dict(parameters), **about, **options)


def normalised(notebook: NotebookNode) -> NotebookNode:
    """Outputs as they are stored: no widgets' state, no traces of the run, large pictures as JPEG."""
    for key in LONG_LIVED:
        notebook.metadata.pop(key, None)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        kept = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        for output in kept:
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            png = base64.b64decode(data.get("image/png", ""))
            if len(png) > LARGEST_PNG:
                del data["image/png"]
                data["image/jpeg"] = _jpeg(png)
        if cell.cell_type == "code":
            cell.outputs = kept
    return notebook


def store(path: Path) -> None:
    """Execute a notebook with its default parameters and keep what it shows.

    Raises:
        RuntimeError: A cell failed or the kernel ended; the stored notebook is left as it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / path.name
        try:
            notebook = normalised(execute(path, result, {"out_dir": str(Path(folder) / "out")}))
        except (PapermillExecutionError, DeadKernelError) as error:
            raise RuntimeError(f"{path.name} failed:\n{error}") from error
    nbformat.write(notebook, path)


def _jpeg(png: bytes) -> str:
    buffer, image = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=88, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
