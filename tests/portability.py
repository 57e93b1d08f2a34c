"""Every file opens everywhere: pictures written and read by processes whose CPU computes differently.

``make matrix`` writes 50 pictures of 0.01 to 12 megapixels and reads each in every setting. Photos are taken from
``PSIC_DATA_ROOT`` (``photos``, ``kodak``, ``camera``) where it is set, else enlarged from scikit-image.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from skimage import data

#: Environments in which floating-point sums come out differently.
SETTINGS: dict[str, dict[str, str]] = {
    "as it is, 2 threads": {"OMP_NUM_THREADS": "2"},
    "as it is, 1 thread": {"OMP_NUM_THREADS": "1"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "ATen AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen AVX-512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "MKL AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE"},
    "without oneDNN": {"WITHOUT_ONEDNN": "1"},
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "WITHOUT_ONEDNN": "1",
        "OMP_NUM_THREADS": "1",
    },
}


def pictures(folder: Path, megapixels: Sequence[float]) -> list[Path]:
    """Photos of so many megapixels each, cropped or enlarged from what is at hand, as PNG files in a folder."""
    root = Path(os.environ.get("PSIC_DATA_ROOT", "/nowhere"))
    found = sorted(p for name in ("camera", "photos", "kodak") for p in (root / name).glob("*.[jp][pn]*g"))
    paths = []
    for i, size in enumerate(megapixels):
        image = Image.open(found[i % len(found)]) if found else Image.fromarray((data.coffee(), data.chelsea())[i % 2])
        scale = (size * 1e6 / (image.width * image.height)) ** 0.5
        image = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        paths.append(folder / f"{i:02}.png")
        image.save(paths[-1], compress_level=1)
    return paths


Job = tuple[str, str, str]  # checkpoint, picture to write or nothing, file


def in_setting(setting: str, jobs: Sequence[Job]) -> dict[str, str]:
    """Write or read files in a process of its own; what each decodes to, as a hash."""
    env = {"OMP_NUM_THREADS": "2"} | os.environ | SETTINGS[setting] | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, "work"]
    ran = subprocess.run(command, input=json.dumps(jobs), env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{setting}: {ran.stderr}")
    print(f"{setting}: {len(jobs)} done", file=sys.stderr, flush=True)
    return json.loads(ran.stdout)


def work(jobs: Sequence[Job]) -> dict[str, str]:
    """What `in_setting` runs."""
    from psic_core import bitstream
    from psic_core.models.images import load_image
    from psic_core.training.checkpoints import load_checkpoint

    if os.environ.get("WITHOUT_ONEDNN"):
        torch.backends.mkldnn.enabled = False
    models, latents = {checkpoint: load_checkpoint(checkpoint) for checkpoint, _, _ in jobs}, {}
    for checkpoint, picture, file in jobs:
        if picture:
            Path(file).write_bytes(models[checkpoint].compress(load_image(picture)))
        try:
            y_hat = models[checkpoint].latents(bitstream.unpack(Path(file).read_bytes()))
            latents[file] = hashlib.sha256(y_hat.numpy()).hexdigest()
        except bitstream.BitstreamError as error:
            latents[file] = f"does not open: {error}"
    return latents


def matrix(
    folder: Path, checkpoints: Sequence[str], sources: Sequence[Path], settings: Sequence[str], writers: int
) -> tuple[int, dict[str, list[str]]]:
    """The first settings share the pictures and write them; each setting reads what others wrote.

    Returns:
        The number of files, and for each setting what did not open, or opened to other latents than were coded.
    """
    jobs: list[Job] = []
    coded: dict[str, str] = {}
    known: dict[str, set[str]] = {setting: set() for setting in settings}
    wrong: dict[str, list[str]] = {setting: [] for setting in settings}
    for n, setting in enumerate([*settings, *settings[: writers - 1]]):  # the first again: for what was written later
        own = [(c, str(s), f"{folder}/{Path(c).stem}-{s.stem}.psic")
               for c in checkpoints for s in (sources[n::writers] if n < writers else [])]  # fmt: skip
        others = [(c, "", file) for c, _, file in jobs if file not in known[setting]]
        found = in_setting(setting, [*own, *others])
        coded |= {file: found[file] for _, _, file in own}
        wrong[setting] += [f"{file}: {found[file]}" for _, _, file in others if found[file] != coded[file]]
        known[setting] |= set(found)
        jobs += own
    return len(coded), wrong


def main() -> None:
    """``make matrix``."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--pictures", type=int, default=50)
    p.add_argument("--checkpoints", nargs="+", default=["psic-q2"], help="files and shipped names")
    p.add_argument("--out", type=Path, default=Path("build/portability"))
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sizes = [0.01 * 1200 ** (i / (args.pictures - 1)) ** 2.5 for i in range(args.pictures)]  # a few are large
    sources = pictures(args.out, sizes)
    files, wrong = matrix(args.out, args.checkpoints, sources, list(SETTINGS), len(SETTINGS))
    report = {"pictures": len(sources), "files": files, "settings": len(SETTINGS), "wrong": wrong}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(any(wrong.values()))


if __name__ == "__main__":
    json.dump(work(json.load(sys.stdin)), sys.stdout) if sys.argv[1:] == ["work"] else main()
