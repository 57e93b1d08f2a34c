"""Draw the data set *scenes*: photographic cut-outs composed onto grounds and skies, 160 x 160 pixels.

    split, seed, index -> Plan (plans.py) -> captions, attributes (phrases.py)
                               |
                               +-> pixels (render.py)

    python data/scenes/make_scenes.py         writes train.zip and test.zip: three minutes

Each archive holds WebP pictures by number and ``scenes.json``, as `psic_core.datasets.scenes.Scenes` reads them. The
splits differ in their draws, not in their cut-outs.
"""

import io
import json
import zipfile

from phrases import ATTRIBUTES, attributes, captions
from PIL import Image
from plans import class_names, class_of, make_plan, scenes_dir
from render import draw
from tqdm import tqdm

SIZE = 160  # pixels a side
NUMBER = {"train": 2560, "test": 500}
WEBP = {"train": {"quality": 85}, "test": {"lossless": True}}  # 37 dB in 4.6 kB a picture; what is measured on: exact


def row(split, index):
    """What is known of a scene."""
    plan = make_plan(split, 0, index)
    flags = "".join(str(int(flag)) for flag in attributes(plan))
    return {"class": class_of(split, 0, index), "attributes": flags, "captions": captions(plan)}


def webp(split, index):
    """Its pixels, coded."""
    picture = Image.fromarray(draw(make_plan(split, 0, index), SIZE))
    picture.save(file := io.BytesIO(), "WEBP", method=6, **WEBP[split])
    return file.getvalue()


def write(split):
    """One archive, the same to the last byte each time."""
    prompts = {name: (yes, no) for name, (yes, no, _) in ATTRIBUTES.items()}
    known = {"classes": class_names(), "attributes": prompts, "scenes": [row(split, i) for i in range(NUMBER[split])]}
    with zipfile.ZipFile(scenes_dir() / f"{split}.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo("scenes.json"), json.dumps(known), zipfile.ZIP_DEFLATED)
        for i in tqdm(range(NUMBER[split]), split):
            archive.writestr(zipfile.ZipInfo(f"{i:04}.webp"), webp(split, i))


if __name__ == "__main__":
    for split in NUMBER:
        write(split)
