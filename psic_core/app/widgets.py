"""Switching the modes by hand: what notebook 06 shows, and the controls that choose it.

`Lab` makes pictures, each once; ``render_*`` turn settings into a `View`; the controls of a `Panel` call them. In plain
Python setting a control's ``.value`` does what a hand in Jupyter does.
"""

import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import traitlets
from ipywidgets import HTML, Dropdown, FileUpload, FloatSlider, HBox, Layout, Text, Textarea, ToggleButtons, VBox
from ipywidgets import Image as Picture
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from psic_core import bitstream
from psic_core.app import figures
from psic_core.app.words import InputError, prompt_list
from psic_core.codec import PSIC
from psic_core.metrics import psnr
from psic_core.models.images import load_image, to_pil, to_tensor
from psic_core.models.vlp import Target
from psic_core.shield import Version

MODES = ("original", "full", "protected", "wrong keyword")
SHIELDS = ("trained", "carried", "sealed")


class Lab(traitlets.HasTraits):
    """Photos and everything made from them, each once: a redraw decodes nothing that was decoded before.

    The model is on the CPU and holds its secret; uploads are scaled to a shorter side of ``side`` pixels. ``shield``
    says how photos are protected.
    """

    photos = traitlets.Dict()
    shield = traitlets.Enum(SHIELDS, "trained")

    def __init__(self, model: PSIC, target: Target, photos: Mapping[str, Image.Image], side: int = 160) -> None:
        super().__init__(photos=dict(photos))
        self.model, self.target, self.side = model, target, side
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
        make = partial(self.model.compress, adapt=None if self.shield == "trained" else self.shield)
        return self._once(("file", self.shield, photo, keyword), lambda: make(self.photos[photo], keyword))

    def condition(self, photo: str, keyword: str, tried: str) -> tuple[str, Float[Tensor, " dim"] | None]:
        """What the words ``tried`` mean for the file that ``keyword`` seals: a version, and its condition."""
        name, condition, _ = self._version(photo, keyword, tried)
        return name, self.model.full_condition() if name == "full" else condition

    def _version(self, photo: str, keyword: str, tried: str) -> Version:
        key, stream = ("version", self.shield, photo, keyword, tried), bitstream.unpack(self.file(photo, keyword))
        return self._once(key, lambda: self.model.version_of(stream, tried or None))

    def picture(self, photo: str, keyword: str, beta: Float[Tensor, " dim"] | None) -> Image.Image:
        """The file decoded under a condition; ``None`` and the zero vector are one: protected."""
        stream, adapted = bitstream.unpack(self.file(photo, keyword)), None
        key = b"" if beta is None or not beta.any() else beta.numpy().tobytes()
        y_hat = self._once(("latents", self.shield, photo, keyword), lambda: self.model.latents(stream))
        if self.shield != "trained":
            full = beta is not None and torch.equal(beta, self.model.full_condition())
            adapted = self._version(photo, keyword, keyword if full else "").adapted
        shown = partial(self.model.picture, y_hat, stream.size, beta, adapted=adapted)
        return self._once(("picture", self.shield, photo, keyword, key), lambda: to_pil(shown()))

    @property
    def decoded(self) -> int:
        """How many pictures have been decoded so far."""
        return sum(key[0] == "picture" for key in self._made)

    def features(self, image: Image.Image) -> Float[Tensor, "1 d"]:
        """The target's unit features of a picture, which is kept, so that its identity stays its own."""
        return self._once(("seen", id(image)), lambda: (image, self.target.encode_images(to_tensor(image)).cpu()))[1]

    def words(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The target's unit features of texts."""
        return self._once(("words", *texts), lambda: self.target.encode_text(list(texts)).cpu())

    def believed(self, image: Image.Image, prompts: Sequence[str]) -> Float[Tensor, " prompts"]:
        """The target's probabilities over prompts."""
        return self.target.probabilities(self.features(image), self.words(prompts))[0]

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class View(NamedTuple):
    """What a setting shows: the picture, the full version beside it, beliefs about both, and a line of text."""

    picture: Image.Image
    full: Image.Image
    beliefs: Figure
    says: str


def render_mode(lab: Lab, photo: str, keyword: str, tried: str | None, prompts: Sequence[str]) -> View:
    """The photo as the words ``tried`` decode it; ``None`` shows the original itself."""
    if tried is None:
        return _view(lab, photo, keyword, "original", lab.photos[photo], prompts)
    version, beta = lab.condition(photo, keyword, tried)
    return _view(lab, photo, keyword, version, lab.picture(photo, keyword, beta), prompts)


def render_between(lab: Lab, photo: str, keyword: str, t: float, prompts: Sequence[str]) -> View:
    """The photo decoded under beta = t c: protected at t = 0, full at t = 1."""
    shown = lab.picture(photo, keyword, t * lab.model.full_condition())
    return _view(lab, photo, keyword, f"β = {t:.2f} c", shown, prompts)


def _view(lab: Lab, photo: str, keyword: str, name: str, picture: Image.Image, prompts: Sequence[str]) -> View:
    """A picture beside the full version, and what is believed of both and of the original."""
    full, original = lab.picture(photo, keyword, lab.model.full_condition()), lab.photos[photo]
    shown = {"original": original, "full": full, name: picture}
    believed = {version: lab.believed(image, prompts) for version, image in shown.items()}
    best = int(believed[name].argmax())
    says = f"{photo}, {name}: read as “{prompts[best]}”, {100 * float(believed[name][best]):.0f} %"
    if picture is not original:
        says += f"; {psnr(to_tensor(picture), to_tensor(original)):.2f} dB against the original"
    return View(picture, full, figures.beliefs(believed, prompts, top=len(prompts)), says)


def wiped(left: Image.Image, right: Image.Image, share: float) -> Image.Image:
    """One picture over another of its size, up to a share of the width."""
    both = right.copy()
    both.paste(left.crop((0, 0, round(share * left.width), left.height)))
    return both


def read_upload(content: bytes | memoryview, name: str) -> Image.Image:
    """An uploaded file as upright RGB."""
    try:
        image = load_image(io.BytesIO(content))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"“{name}” cannot be read as a picture; upload a PNG or JPEG file.") from error
    if max(image.size) > 4 * min(image.size):
        raise InputError(f"“{name}” is {image.width} x {image.height}: one side may be 4 times the other, not more.")
    return image


class Panel(VBox):
    """Controls; below them the full version, a wipe from it to what the controls choose, and beliefs.

    An `InputError` becomes a sentence, every other exception goes its way. Subclasses add controls and ``_render``.
    """

    def __init__(self, lab: Lab, prompts: str, *more: Any) -> None:
        self.lab, self.says, self._busy = lab, HTML(), False
        self.photo = Dropdown(options=tuple(lab.photos), description="photo")
        self.prompts = Textarea(prompts, description="prompts", rows=5, continuous_update=False)
        self.wipe = FloatSlider(0.5, min=0, max=1, step=0.05, description="wipe", continuous_update=False)
        controls = (self.photo, *more, self.wipe, self.prompts)
        pictures = [Picture(layout=Layout(width="320px", margin="0 8px 8px 0")) for _ in range(2)]
        rows = ([*pictures, Picture(layout=Layout(max_width="480px"))], controls)
        self.stage, above = (HBox(row, layout=Layout(flex_flow="row wrap")) for row in rows)
        super().__init__([above, self.says, self.stage])
        for control in controls:
            control.observe(self._changed, "value")
        traitlets.dlink((lab, "photos"), (self.photo, "options"), tuple)
        self._redraw()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: run the notebook to use it>"  # what a stored page shows

    def _sync(self, control: Any) -> None: ...  # brings the others in line with the one that has changed

    def _render(self, prompts: Sequence[str]) -> View:
        raise NotImplementedError

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

    def _redraw(self) -> None:
        view = self._render(prompt_list(self.prompts.value))
        shown = (view.full, wiped(view.full, view.picture, self.wipe.value), view.beliefs)
        for widget, picture in zip(self.stage.children, shown, strict=True):
            widget.value = figures.png(picture)
        self.stage.layout.visibility = None
        self.says.value = html.escape(f"{view.says}. Left: the full version; right of the wipe: this one.")


class ModeSwitch(Panel):
    """The modes by hand: a version types its keyword, and a keyword shows its version."""

    def __init__(self, lab: Lab, keyword: str, wrong: str, prompts: str) -> None:
        self.upload = FileUpload(accept="image/*", description="upload")
        self.sealed = Text(keyword, description="sealed with", continuous_update=False)
        self.tried = Text("", description="you type", placeholder="no keyword", continuous_update=False)
        self.version = ToggleButtons(options=MODES, value="protected", description="version")
        self.shield = ToggleButtons(options=SHIELDS, value=lab.shield, description="shield")
        self.wrong = wrong
        super().__init__(lab, prompts, self.upload, self.sealed, self.tried, self.shield, self.version)

    def _sync(self, control: Any) -> None:
        self.lab.shield = self.shield.value
        if control is self.upload and self.upload.value:
            file = self.upload.value[-1]
            self.lab.add(file["name"].rpartition(".")[0], read_upload(file["content"], file["name"]))
        sealed, wrong = self.sealed.value, self.wrong + "!" * (self.wrong == self.sealed.value)
        if control is self.version:
            words = {"full": sealed, "protected": "", "wrong keyword": wrong}
            self.tried.value = words.get(self.version.value, self.tried.value)
        if control is self.tried or self.version.value != "original":
            self.version.value, _ = self.lab.condition(self.photo.value, sealed, self.tried.value)

    def _render(self, prompts: Sequence[str]) -> View:
        tried = None if self.version.value == "original" else self.tried.value
        return render_mode(self.lab, self.photo.value, self.sealed.value, tried, prompts)


class BetaSlider(Panel):
    """From the protected condition to the full one: beta = t c."""

    def __init__(self, lab: Lab, keyword: str, prompts: str) -> None:
        self.keyword = keyword
        self.t = FloatSlider(0.5, min=0, max=1, step=0.1, description="t = β / c", continuous_update=False)
        super().__init__(lab, prompts, self.t)

    def _render(self, prompts: Sequence[str]) -> View:
        return render_between(self.lab, self.photo.value, self.keyword, self.t.value, prompts)
