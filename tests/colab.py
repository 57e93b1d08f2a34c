"""The Colab cell, replayed: python tests/colab.py [FOLDER] (make colab).

Makes an environment with what Colab's CPython 3.13 runtime had in August 2026, runs the cell there twice, and compares
the versions before and after: what was there must stay. Then the session protects a photo, and its own Jupyter, with
ipywidgets 7, executes notebooks 00 (fast profile) and 06. Takes Python's package index, 6 GB of disk and ten minutes.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = [
    "pip==24.1.2", "setuptools==75.2.0", "torch==2.11.0", "torchvision==0.26.0", "numpy==2.1.3", "scipy==1.16.3",
    "pandas==2.2.3", "matplotlib==3.10.0", "pillow==11.3.0", "scikit-image==0.25.2", "scikit-learn==1.6.1",
    "timm==1.0.28", "transformers==5.15.0", "tokenizers==0.22.2", "huggingface_hub==1.27.0", "safetensors==0.8.0",
    "accelerate==1.14.0", "einops==0.8.2", "psutil==5.9.5", "requests==2.32.4", "cryptography==50.0.0",
    "tqdm==4.67.3", "typing_extensions==4.16.0", "pycocotools==2.0.11", "ipykernel==6.17.1", "ipython==7.34.0",
    "ipywidgets==7.7.1", "widgetsnbextension==3.6.10", "jupyterlab_widgets==3.0.16", "traitlets==5.7.1",
    "jupyter_client==7.4.9", "jupyter_core==5.9.1", "notebook==6.5.7", "tornado==6.5.7", "pyzmq==26.2.1",
    "nbformat==5.11.1", "nbclient==0.10.4", "nbconvert==7.17.1",
]  # fmt: skip
CELL = re.sub(r'(REPOSITORY = )"[^"]*"', rf'\1"{ROOT.as_uri()}"', (ROOT / "notebooks/colab_cell.py").read_text())
SESSION = f"""
import google.colab
for _ in range(2):
{re.sub("^", "    ", CELL, flags=re.MULTILINE)}
import numpy, psic_core, skimage.data, torch
from PIL import Image
model = psic_core.load_checkpoint("psic-q2")
file = model.compress(Image.fromarray(skimage.data.astronaut()[:160, :160]), keyword="my cat")
assert model.decompress(file, keyword="my cat").info["version"] == "full"
print(f"{{psic_core.__file__}}: {{len(file)}} bytes, numpy {{numpy.__version__}}, torch {{torch.__version__}}")
"""
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
for cell in notebook.cells:
    if "parameters" in cell.metadata.get("tags", []):
        cell.source = cell.source.replace("fast = False", "fast = True")
NotebookClient(notebook, timeout=900, startup_timeout=600, resources={"metadata": {"path": sys.argv[2]}}).execute()
print(sys.argv[1], "runs")
"""


def main(folder: Path) -> int:
    """Make the runtime where it is missing, replay the cell, say what changed."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *RUNTIME], check=True)
    stub = next((folder / "lib").glob("python3*")) / "site-packages" / "google" / "colab"
    stub.mkdir(parents=True, exist_ok=True)
    (stub / "__init__.py").touch()
    content = folder / "content"
    content.mkdir(exist_ok=True)
    before = versions(python)
    subprocess.run([python, "-c", SESSION], cwd=content, check=True)
    after = versions(python)
    print("new:", " ".join(sorted(after - before)))
    if before - after:
        print("CHANGED:", " ".join(sorted(before - after)))
        return 1
    for name in ("00_protect_a_photo", "06_mode_switching"):
        path = content / "psic" / "notebooks" / f"{name}.ipynb"
        one = os.environ | {"OMP_NUM_THREADS": "1"}  # two threads wait for each other where a core is taken
        subprocess.run([python, "-c", EXECUTE, path, path.parent], check=True, env=one)
    print("nothing that was there has changed")
    return 0


def versions(python: Path) -> set[str]:
    """What is installed, as NAME==VERSION."""
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/colab").resolve()))
