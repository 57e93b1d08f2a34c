"""Switching the modes by hand: what notebook 06 shows, and the controls that choose it.

`Lab` makes pictures, each once; `render_mode` turns settings into a `View`; the controls of `ModeSwitch` call it. In
plain Python setting a control's ``.value`` does what a hand in Jupyter does.
"""

import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import traitlets
from ipywidgets import HTML, Dropdown, FileUpload, FloatSlider, HBox, Layout, Text, Textarea, VBox
from ipywidgets import Image as Picture
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from psic_core import bitstream
from psic_core.app import figures
from psic_core.app.words import InputError, prompt_list
from psic_core.codec import PSIC
from psic_core.metrics import psnr
from psic_core.models.images import load_image, to_pil, to_tensor
from psic_core.models.vlp import Target

MODES = ("original", "full", "protected", "wrong keyword", "between")
SHIELDS = ("trained", "carried", "sealed")


class Lab(traitlets.HasTraits):
    """Photos and everything made from them, each once: a redraw decodes nothing that was decoded before.

    The model is on the CPU and holds its secret; uploads are scaled to a shorter side of ``side`` pixels; ``adapt`` is
    that of `PSIC.compress`.
    """

    photos = traitlets.Dict()

    def __init__(self, model: PSIC, target: Target, photos: Mapping[str, Image.Image], side: int = 160) -> None:
        super().__init__(photos=dict(photos))
        self.model, self.target, self.side, self.adapt = model, target, side, None
        self._made: dict[tuple[Any, ...], Any] = {}

    def add(self, name: str, image: Image.Image) -> None:
        """Take in a photo as the first one, scaled to ``side``; numbered where another has its name."""
        numbered = (f"{name} {n}" for n in range(2, len(self.photos) + 3))
        name = next(n for n in (name, *numbered) if n and n not in self.photos)
        self.photos = {name: ImageOps.cover(image, (self.side, self.side)), **self.photos}

    def file(self, photo: str, keyword: str) -> bytes:
        """The photo's ``.psic`` file, sealed with a keyword."""
        if not keyword:
            raise InputError("The file needs a keyword: type one under “sealed with”.")
        make = partial(self.model.compress, self.photos[photo], keyword, adapt=self.adapt)
        return self._once(("file", self.adapt, photo, keyword), make)

    def decoded(self, photo: str, keyword: str, tried: str | float) -> tuple[str, Image.Image]:
        """What the words ``tried`` make of the file, or ``tried`` times c does: the version's name, and the picture."""

        def make() -> tuple[str, Image.Image]:
            stream = bitstream.unpack(self.file(photo, keyword))
            y_hat = self._once(("latents", self.adapt, photo, keyword), lambda: self.model.latents(stream))
            name, beta, adapted = self.model.version_of(stream, tried if isinstance(tried, str) and tried else None)
            if isinstance(tried, float):
                name, beta, adapted = f"β = {tried:.1f} c", tried * self.model.full_condition(), None
            return name, to_pil(self.model.picture(y_hat, stream.size, beta, adapted=adapted))

        if tried in (0.0, 1.0):  # an end of the way, which has words
            return f"β = {tried:.1f} c", self.decoded(photo, keyword, keyword if tried else "")[1]
        return self._once(("decoded", self.adapt, photo, keyword, tried), make)

    def features(self, image: Image.Image) -> Float[Tensor, "1 d"]:
        """The target's unit features of a picture, which is kept, so that its identity stays its own."""
        return self._once(("seen", id(image)), lambda: (image, self.target.encode_images(to_tensor(image)).cpu()))[1]

    def believed(self, image: Image.Image, prompts: Sequence[str]) -> Float[Tensor, " prompts"]:
        """The target's probabilities over prompts."""
        words = self._once(("words", *prompts), lambda: self.target.encode_text(list(prompts)).cpu())
        return self.target.probabilities(self.features(image), words)[0]

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class View(NamedTuple):
    """What a setting shows: the picture, the full version beside it, beliefs by version, and a line of text."""

    picture: Image.Image
    full: Image.Image
    believed: dict[str, Tensor]
    says: str


def render_mode(lab: Lab, photo: str, keyword: str, tried: str | float | None, prompts: Sequence[str]) -> View:
    """The photo as the words ``tried`` decode it; as ``tried`` times c does; or, for ``None``, the original itself."""
    original, full = lab.photos[photo], lab.decoded(photo, keyword, keyword)[1]
    name, picture = ("original", original) if tried is None else lab.decoded(photo, keyword, tried)
    shown = {"original": original, "full": full, name: picture}
    believed = {version: lab.believed(image, prompts) for version, image in shown.items()}
    best = int(believed[name].argmax())
    says = f"{photo}, {name}: read as “{prompts[best]}”, {100 * float(believed[name][best]):.0f} %"
    if picture is not original:
        says += f"; {psnr(to_tensor(picture), to_tensor(original)):.2f} dB against the original"
    return View(picture, full, believed, says)


def wiped(left: Image.Image, right: Image.Image, share: float) -> Image.Image:
    """One picture over another of its size, up to a share of the width."""
    both = right.copy()
    both.paste(left.crop((0, 0, round(share * left.width), left.height)))
    return both


def bars(believed: Mapping[str, Float[Tensor, " prompts"]], prompts: Sequence[str]) -> str:
    """Beliefs as HTML, a row of bars for each prompt: drawn in no time, so that a slider can be live."""
    colours = {name: figures.COLOURS.get(name, figures.COLOURS["protected"]) for name in believed}
    text = " &nbsp; ".join(f'<b style="color:{c}">{html.escape(name)}</b>' for name, c in colours.items())
    for i, prompt in enumerate(prompts):
        text += f'<div style="line-height:1.3;margin-top:5px">{html.escape(prompt)}</div>'
        shares = {name: f"{max(0.5, 100 * float(p[i])):.1f}%" for name, p in believed.items()}
        text += "".join(f'<div style="height:5px;background:{colours[n]};width:{w}"></div>' for n, w in shares.items())
    return text


def read_upload(content: bytes | memoryview, name: str) -> Image.Image:
    """An uploaded file as upright RGB."""
    try:
        image = load_image(io.BytesIO(content))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"“{name}” cannot be read as a picture; upload a PNG or JPEG file.") from error
    if max(image.size) > 4 * min(image.size):
        raise InputError(f"“{name}” is {image.width} x {image.height}: one side may be 4 times the other, not more.")
    return image


class ModeSwitch(HBox):
    """Controls on the left; beside them the full version, a wipe from it to what they choose, and beliefs.

    A version types its keyword, a keyword shows its version, and the slider walks from protected to full, with the
    trained shield. An `InputError` becomes a sentence, every other exception goes its way.
    """

    def __init__(self, lab: Lab, keyword: str, wrong: str, prompts: str) -> None:
        self.lab, self.wrong, self.says, self._busy = lab, wrong, HTML(), False
        self.photo = Dropdown(options=tuple(lab.photos), description="photo")
        self.upload = FileUpload(accept="image/*", description="upload")
        self.version = Dropdown(options=MODES, value="protected", description="version")
        self.shield = Dropdown(options=SHIELDS, value=lab.adapt or "trained", description="shield")
        self.tried = Text("", description="you type", placeholder="no keyword", continuous_update=False)
        self.sealed = Text(keyword, description="sealed with", continuous_update=False)
        self.t = FloatSlider(0, min=0, max=1, step=0.1, description="t = β / c")
        self.wipe = FloatSlider(0.5, min=0, max=1, step=0.05, description="wipe")
        self.prompts = Textarea(prompts, description="prompts", rows=8, continuous_update=False)
        controls = [self.photo, self.upload, self.shield, self.version, self.tried, self.sealed, self.t, self.wipe]
        controls.append(self.prompts)
        for control in controls:
            control.layout.width, control.style.description_width = "270px", "76px"
            control.observe(self._changed, "value")
        parts = ((Picture, "37%"), (Picture, "37%"), (HTML, "23%"))
        self.stage = HBox([kind(layout=Layout(width=width)) for kind, width in parts])
        self.stage.layout = Layout(align_items="flex-start", justify_content="space-between")
        right = VBox([self.says, self.stage], layout=Layout(flex="1 1 0", margin="0 0 0 12px", min_width="0"))
        super().__init__([VBox(controls), right])
        traitlets.dlink((lab, "photos"), (self.photo, "options"), tuple)
        self._redraw()

    def __repr__(self) -> str:
        return "<ModeSwitch: run the notebook to use it>"  # what a stored page shows

    def _changed(self, change: Any) -> None:
        if self._busy:  # `_sync` itself sets controls
            return
        self._busy = True
        try:
            self._sync(change["owner"])
            self._redraw()
        except InputError as error:
            self.says.value = f'<b style="color: #b2182b">{html.escape(str(error))}</b>'
            self.stage.layout.visibility = "hidden"  # nothing that no longer fits the controls; the page stays still
        finally:
            self._busy = False

    def _sync(self, control: Any) -> None:
        """Bring the other controls in line with the one that has changed."""
        if control is self.upload and self.upload.value:
            file = self.upload.value[-1]
            self.lab.add(file["name"].rpartition(".")[0], read_upload(file["content"], file["name"]))
        sealed, wrong = self.sealed.value, self.wrong + "!" * (self.wrong == self.sealed.value)
        if control is self.t:  # what is made for a photo knows no way between
            self.version.value, self.shield.value = "between", "trained"
        self.lab.adapt = None if self.shield.value == "trained" else self.shield.value
        if control is self.version:
            words = {"full": sealed, "protected": "", "wrong keyword": wrong}
            self.tried.value = words.get(self.version.value, self.tried.value)
        if control is self.tried or self.version.value not in ("original", "between"):
            self.version.value, _ = self.lab.decoded(self.photo.value, sealed, self.tried.value)
            self.t.value = float(self.version.value == "full")

    def _redraw(self) -> None:
        prompts, version = prompt_list(self.prompts.value), self.version.value
        tried = {"original": None, "between": self.t.value}.get(version, self.tried.value)
        view = render_mode(self.lab, self.photo.value, self.sealed.value, tried, prompts)
        full, shown, beliefs = self.stage.children
        full.value, shown.value = (figures.png(p) for p in (view.full, wiped(view.full, view.picture, self.wipe.value)))
        beliefs.value = bars(view.believed, prompts)
        self.stage.layout.visibility = None
        self.says.value = (
            f"<b>{html.escape(view.says)}.</b><br>Left: full. Right: full up to the wipe, then this version."
        )
