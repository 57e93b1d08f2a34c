"""Draws README's picture of the architecture: ``python notebooks/architecture.py`` writes ``data/architecture.svg``.

One file serves light and dark pages: its colours follow the reader's.
"""

from pathlib import Path

STYLE = """
  :root { --ink: #24292f; --soft: #6e7781; --page: #ffffff; --codec: #dbe7f5; --cltg: #fde3cf; --loss: #e4f0de; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e6edf3; --soft: #9198a1; --page: #0d1117; --codec: #1f3350; --cltg: #55341a; --loss: #24401f; }
  }
  text { font: 14px -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); text-anchor: middle; }
  .small { font-size: 12px; fill: var(--soft); }
  .title { font-weight: 600; }
  rect { stroke: var(--soft); rx: 6px; }
  path { stroke: var(--ink); stroke-width: 1.5; fill: none; marker-end: url(#tip); }
  .train { stroke: var(--soft); stroke-dasharray: 5 4; }
"""
WIDTH, HEIGHT = 960, 452


def box(x: int, y: int, width: int, height: int, kind: str, *lines: str) -> list[str]:
    """A filled rectangle around (x, y) with lines of text; the first is the title."""
    left, top = x - width // 2, y - height // 2
    frame = f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="var(--{kind})"/>'
    return [frame, *label(x, y, *lines)]


def label(x: int, y: int, *lines: str) -> list[str]:
    """Lines of text centred on (x, y); the first is the title."""
    top = y + 5 - 8 * (len(lines) - 1)
    kinds = ("title", "small", "small")
    rows = enumerate(zip(kinds, lines, strict=False))
    return [f'<text class="{k}" x="{x}" y="{top + 17 * i}">{line}</text>' for i, (k, line) in rows if line]


def arrow(*points: tuple[int, int], train: bool = False) -> list[str]:
    """A line through points, with a tip at its end; dashed where it exists in training alone."""
    way = " L ".join(f"{x} {y}" for x, y in points)
    return [f'<path class="{"train" if train else "use"}" d="M {way}"/>']


def drawing() -> str:
    """The picture as SVG."""
    parts = label(38, 92, "photo x")
    parts += arrow((76, 92), (106, 92)) + box(142, 92, 70, 46, "codec", "E", "encoder")
    parts += arrow((178, 92), (204, 92)) + box(250, 92, 90, 46, "codec", "Q, coder", "integers")
    parts += arrow((296, 92), (322, 92)) + box(368, 92, 90, 46, "page", ".psic", "one file")
    parts += arrow((414, 92), (442, 92)) + box(494, 92, 102, 46, "codec", "D", "decoder")
    parts += arrow((546, 92), (806, 92)) + label(872, 92, "full", "read as the photo")
    parts += label(368, 24, "keyword", "opens a slot: β = c") + arrow((368, 46), (368, 68))

    parts += arrow((600, 92), (600, 148), (494, 148), (494, 166)) + label(654, 146, "", "scaled to R = 160")
    parts += box(494, 190, 204, 46, "codec", "E, then D(·, β) − D(·, c)", "at the size that readers see")
    for x in range(430, 570, 32):
        parts += [f'<rect x="{x - 11}" y="240" width="22" height="22" fill="var(--cltg)"/>', *arrow((x, 240), (x, 215))]
    parts += label(494, 284, "triggers T(β), one a stage", "β = 0 without a keyword; T(c) = 0")
    parts += arrow((596, 190), (646, 190)) + box(704, 190, 114, 46, "page", "delta", "enlarged")
    parts += ['<circle cx="704" cy="130" r="11" fill="var(--page)" stroke="var(--soft)"/>', *label(704, 130, "+")]
    parts += arrow((704, 92), (704, 118)) + arrow((704, 166), (704, 142)) + arrow((716, 130), (806, 130))
    parts += label(878, 140, "protected", "looks like the photo")

    parts += arrow((44, 108), (44, 382), (62, 382), train=True)
    parts += box(
        176,
        382,
        226,
        76,
        "loss",
        "Dempster–Shafer evidence",
        "of the photo's own captions and",
        "others: the least believed (Eq. 8)",
    )
    parts += arrow((290, 382), (376, 382), train=True)
    parts += box(
        494, 382, 232, 76, "loss", "UAEO (Eq. 9)", "pull protected to that caption,", "and keep it near the photo"
    )
    parts += arrow((494, 343), (494, 312), train=True)
    parts += arrow((878, 168), (878, 382), (792, 382), train=True)
    parts += box(730, 382, 120, 46, "loss", "reader f", "CLIP and its kin") + arrow((669, 382), (612, 382), train=True)
    parts += label(176, 432, "", "dashed: in training alone")
    body = "\n  ".join(parts)
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<polygon points="0,0 8,4 0,8" fill="var(--ink)"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        f"<style>{STYLE}</style>\n{tip}\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--page)" style="stroke: none"/>\n  {body}\n</svg>\n'
    )


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[1] / "data" / "architecture.svg"
    path.write_text(drawing(), encoding="utf-8")
    print(path)
