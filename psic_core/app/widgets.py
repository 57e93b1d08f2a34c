"""Switching the modes by hand: what notebook 05 shows, and the controls that choose it.

`Lab` and `Gallery` make pictures, each once; ``render_*`` turn settings into pictures and figures; the controls of a
`Panel` call them. Setting a control's ``.value`` in plain Python does what a hand in Jupyter does.
"""

import html
import io
from collections.abc import Callable, Mapping, Sequence
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
from psic_core.codec import PSIC
from psic_core.metrics import psnr
from psic_core.models.images import load_image, to_pil, to_tensor
from psic_core.models.vlp import Target

MODES = ("original", "full", "protected", "wrong keyword")


class InputError(ValueError):
    """What the reader has typed or uploaded cannot be used; the sentence says what to do."""


class Lab(traitlets.HasTraits):
    """Photos and everything made from them, each once: a redraw decodes nothing that was decoded before.

    The model is on the CPU and holds its secret; uploads are scaled to a shorter side of ``side`` pixels.
    """

    photos = traitlets.Dict()

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
        return self._once(("file", photo, keyword), lambda: self.model.compress(self.photos[photo], keyword))

    def condition(self, photo: str, keyword: str, tried: str) -> tuple[str, Float[Tensor, " dim"] | None]:
        """What the words ``tried`` mean for the file that ``keyword`` seals: a version, and its condition."""
        stream = bitstream.unpack(self.file(photo, keyword))
        beta = self._once(("condition", photo, keyword, tried), lambda: self.model.condition_of(stream, tried or None))
        if beta is None:
            return "protected", None
        return ("full" if torch.equal(beta, self.model.full_condition()) else "wrong keyword"), beta

    def picture(self, photo: str, keyword: str, beta: Float[Tensor, " dim"] | None) -> Image.Image:
        """The file decoded under a condition; ``None`` and the zero vector are one: protected."""
        stream = bitstream.unpack(self.file(photo, keyword))
        key = b"" if beta is None or not beta.any() else beta.numpy().tobytes()
        y_hat = self._once(("latents", photo, keyword), lambda: self.model.latents(stream))
        return self._once(
            ("picture", photo, keyword, key), lambda: to_pil(self.model.picture(y_hat, stream.size, beta))
        )

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
    """What a setting shows: the picture, picture - full (enlarged, on grey), beliefs, and a line of text."""

    picture: Image.Image
    difference: Image.Image
    beliefs: Figure
    says: str


def render_mode(lab: Lab, photo: str, keyword: str, tried: str | None, prompts: Sequence[str]) -> View:
    """The photo as the words ``tried`` decode it, beside the original; ``None`` shows the original itself."""
    shown = {"original": lab.photos[photo]}
    if tried is not None:
        version, condition = lab.condition(photo, keyword, tried)
        shown[version] = lab.picture(photo, keyword, condition)
    return _view(lab, photo, keyword, shown, prompts)


def render_between(lab: Lab, photo: str, keyword: str, t: float, prompts: Sequence[str]) -> View:
    """The photo decoded under beta = t c: protected at t = 0, full at t = 1."""
    c = lab.model.full_condition()
    conditions = {"full": c, "protected": None, f"β = {t:.2f} c": t * c}
    shown = {name: lab.picture(photo, keyword, beta) for name, beta in conditions.items()}
    return _view(lab, photo, keyword, shown, prompts)


def _view(lab: Lab, photo: str, keyword: str, shown: Mapping[str, Image.Image], prompts: Sequence[str]) -> View:
    """The last picture, and what is believed of all."""
    believed = {name: lab.believed(image, prompts) for name, image in shown.items()}
    name, picture = list(shown.items())[-1]
    best = int(believed[name].argmax())
    says = f"{photo}, {name}: read as “{prompts[best]}”, {100 * float(believed[name][best]):.0f} %"
    if picture is not lab.photos[photo]:
        says += f"; {psnr(to_tensor(picture), to_tensor(lab.photos[photo])):.2f} dB against the original"
    full = lab.picture(photo, keyword, lab.model.full_condition())
    return View(picture, figures.amplified_difference(picture, full), figures.reading(believed, prompts), says)


class Gallery:
    """A small gallery to search with words; ``captions`` names its pictures in the lab, ``keyword`` seals them."""

    def __init__(self, lab: Lab, captions: Mapping[str, str], keyword: str) -> None:
        self.lab, self.captions, c = lab, dict(captions), lab.model.full_condition()
        self.full = {name: lab.picture(name, keyword, c) for name in captions}
        self.protected = {name: lab.picture(name, keyword, None) for name in captions}

    def shelves(self, wanted: str) -> dict[str, dict[str, Image.Image]]:
        """The gallery full, all protected, and with just the searched picture protected."""
        alone = {**self.full, wanted: self.protected[wanted]}
        return {"full": self.full, "all protected": self.protected, "one protected": alone}

    def answers(self, query: str, pictures: Mapping[str, Image.Image]) -> list[str]:
        """Names of the pictures, the best answer to the query first."""
        if not query.strip():
            raise InputError("Type what to search for.")
        features = torch.cat([self.lab.features(image) for image in pictures.values()])
        scores = features @ self.lab.words([query])[0]
        return [list(pictures)[i] for i in scores.argsort(descending=True).tolist()]

    def ranks(self, query: str, wanted: str) -> dict[str, int]:
        """Place of the searched picture on each shelf, from 1."""
        return {shelf: self.answers(query, p).index(wanted) + 1 for shelf, p in self.shelves(wanted).items()}

    def render(self, query: str, wanted: str, top: int = 6) -> Figure:
        """The best answers of each shelf, the searched picture framed."""
        shelves = self.shelves(wanted)
        rows = {s: [(name, p[name]) for name in self.answers(query, p)[:top]] for s, p in shelves.items()}
        return figures.answers(rows, wanted)


def prompt_list(text: str) -> list[str]:
    """Prompts, one a line; empty lines and repetitions are left out."""
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 2 <= len(prompts) <= 12:
        raise InputError(f"Type 2 to 12 different prompts, one a line; here are {len(prompts)}.")
    return prompts


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
    """Controls above what they choose; an `InputError` becomes a sentence, every other exception goes its way."""

    def __init__(self, rows: Sequence[Sequence[Any]], shown: Sequence[Picture]) -> None:
        self.says, self._busy = HTML(), False
        *above, self.stage = (HBox(tuple(row), layout=Layout(flex_flow="row wrap")) for row in [*rows, shown])
        super().__init__([*above, self.says, self.stage])
        for control in (c for row in rows for c in row):
            control.observe(self._changed, "value")
        self._redraw()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: run the notebook to use it>"  # what a stored page shows

    def _sync(self, control: Any) -> None: ...  # brings the others in line with the one that has changed

    def _changed(self, change: Any) -> None:
        if self._busy:  # `_sync` itself sets controls
            return
        self._busy = True
        try:
            self._sync(change["owner"])
            self._redraw()
        except InputError as error:
            self.says.value = f'<b style="color: #b2182b">{html.escape(str(error))}</b>'
            self.stage.layout.display = "none"  # nothing that no longer fits the controls
        finally:
            self._busy = False

    def _redraw(self) -> None:
        pictures, says = self._draw()
        for widget, picture in zip(self.stage.children, pictures, strict=True):
            widget.value = figures.png(picture)
        self.stage.layout.display, self.says.value = None, html.escape(says)


class PhotoPanel(Panel):
    """A photo of the lab, prompts, and a `View` of them; subclasses add controls."""

    def __init__(self, lab: Lab, prompts: str, render: Callable[[Sequence[str]], View], *rows: Sequence[Any]) -> None:
        self.lab, self._render = lab, render
        self.photo = Dropdown(options=tuple(lab.photos), description="photo")
        self.prompts = Textarea(prompts, description="prompts", rows=5, continuous_update=False)
        shown = [Picture(layout=Layout(width="320px", margin="0 8px 8px 0")) for _ in range(2)]
        super().__init__([[self.photo, *rows[0]], *rows[1:], [self.prompts]], [*shown, Picture()])
        traitlets.dlink((lab, "photos"), (self.photo, "options"), tuple)

    def _draw(self) -> tuple[Sequence[Image.Image | Figure], str]:
        *pictures, says = self._render(prompt_list(self.prompts.value))
        return pictures, f"{says}. Right: this picture − the full one, × 8."


class ModeSwitch(PhotoPanel):
    """The modes by hand: a version types its keyword, and a keyword shows its version."""

    def __init__(self, lab: Lab, keyword: str, wrong: str, prompts: str) -> None:
        self.upload = FileUpload(accept="image/*", description="upload")
        self.sealed = Text(keyword, description="sealed with", continuous_update=False)
        self.tried = Text("", description="you type", placeholder="no keyword", continuous_update=False)
        self.version = ToggleButtons(options=MODES, value="protected", description="version")
        self.wrong = wrong
        super().__init__(lab, prompts, self._mode, [self.upload], [self.sealed, self.tried], [self.version])

    def _sync(self, control: Any) -> None:
        if control is self.upload and self.upload.value:
            file = self.upload.value[-1]
            self.lab.add(file["name"].rpartition(".")[0], read_upload(file["content"], file["name"]))
        sealed, wrong = self.sealed.value, self.wrong + "!" * (self.wrong == self.sealed.value)
        if control is self.version:
            words = {"full": sealed, "protected": "", "wrong keyword": wrong}
            self.tried.value = words.get(self.version.value, self.tried.value)
        if control is self.tried or self.version.value != "original":
            self.version.value, _ = self.lab.condition(self.photo.value, sealed, self.tried.value)

    def _mode(self, prompts: Sequence[str]) -> View:
        tried = None if self.version.value == "original" else self.tried.value
        return render_mode(self.lab, self.photo.value, self.sealed.value, tried, prompts)


class BetaSlider(PhotoPanel):
    """From the protected condition to the full one: beta = t c."""

    def __init__(self, lab: Lab, keyword: str, prompts: str) -> None:
        self.t = FloatSlider(0.5, min=0, max=1, step=0.1, description="t = β / c", continuous_update=False)
        super().__init__(
            lab, prompts, lambda p: render_between(lab, self.photo.value, keyword, self.t.value, p), [self.t]
        )


class SearchBox(Panel):
    """Words in, pictures out. A query follows the full gallery's first answer; a chosen picture types its caption."""

    def __init__(self, gallery: Gallery, wanted: str) -> None:
        self.gallery = gallery
        self.wanted = Dropdown(options=tuple(gallery.captions), value=wanted, description="picture")
        self.query = Text(gallery.captions[wanted], description="search", continuous_update=False)
        super().__init__([[self.wanted, self.query]], [Picture(layout=Layout(max_width="100%"))])

    def _sync(self, control: Any) -> None:
        if control is self.wanted:
            self.query.value = self.gallery.captions[self.wanted.value]
        elif control is self.query:
            self.wanted.value = self.gallery.answers(self.query.value, self.gallery.full)[0]

    def _draw(self) -> tuple[Sequence[Image.Image | Figure], str]:
        query, wanted = self.query.value, self.wanted.value
        places = ", ".join(f"{shelf}: {rank}" for shelf, rank in self.gallery.ranks(query, wanted).items())
        says = f"“{wanted}”: place among {len(self.gallery.captions)} pictures. {places}"
        return [self.gallery.render(query, wanted)], says
