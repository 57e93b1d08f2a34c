"""The widgets of notebook 06 in plain Python: setting a control's value does what a hand does."""

import io
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import pytest
import torch
from PIL import Image
from skimage import data

from psic_core.app.widgets import Lab, ModeSwitch, prompt_list, render_mode, wiped
from psic_core.codec import PSIC
from psic_core.config import PUBLIC_PASSPHRASE, CodecConfig
from psic_core.models.vlp import Target, load_target
from psic_core.training import search

KEYWORD, WRONG = "my cat is called Chelsea", "my cat is called Whiskers"
PROMPTS = "a cat\nan astronaut\na cup of coffee"


@pytest.fixture(scope="module")
def model() -> PSIC:
    """Its triggers know the key from everything else, as after a perfect training: wrong words decode protected."""
    torch.manual_seed(0)
    model = PSIC.build(CodecConfig(n=8, m=12, dim=64, hidden=8, ladder=4)).eval()
    with torch.no_grad():
        model.backbone.g_a[-1].weight.mul_(20)
        for trigger in model.g_s.triggers:
            first = trigger.cltg.mlp[0]
            first.weight.copy_(4 * model.full_condition().expand_as(first.weight))
            first.bias.fill_(-2)  # no other unit vector is half as near to the key
            trigger.cltg.w_d.weight.normal_(std=0.5)
    model.anchor()
    return model


@pytest.fixture
def lab(model: PSIC, target: Target) -> Lab:
    photos = {"cat": data.chelsea(), "astronaut": data.astronaut(), "coffee": data.coffee()}
    return Lab(model, target, {n: Image.fromarray(p).resize((96, 64)) for n, p in photos.items()}, side=64)


@pytest.fixture
def switch(lab: Lab) -> ModeSwitch:
    switch = ModeSwitch(lab, KEYWORD, WRONG, PROMPTS)
    switch.wipe.value = 0
    return switch


@pytest.fixture
def calls(model: PSIC, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the codec has worked."""
    counted: Counter[str] = Counter()

    def count(name: str) -> Callable:
        original = getattr(model, name)

        def counting(*args, **options):
            counted[name] += 1
            return original(*args, **options)

        return counting

    for name in ("compress", "latents", "picture", "version_of"):
        monkeypatch.setattr(model, name, count(name))
    return counted


def shown(switch: ModeSwitch, place: int = 1) -> tuple:
    """Size and pixels of what is shown: the full version, or the wiped one."""
    assert switch.stage.layout.visibility is None
    with Image.open(io.BytesIO(switch.stage.children[place].value)) as image:
        return image.size, image.tobytes()


def pixels(image: Image.Image) -> tuple:
    return image.size, image.tobytes()


def complaint(switch: ModeSwitch) -> str:
    """The one sentence in place of the pictures."""
    assert switch.stage.layout.visibility == "hidden"
    assert "Traceback" not in switch.says.value
    assert switch.says.value.count("<b ") == 1
    return switch.says.value


def decoded(lab: Lab, keyword: str | None, photo: str = "cat") -> tuple:
    return pixels(lab.model.decompress(lab.file(photo, KEYWORD), keyword))


# --- the pictures behind the widgets ----------------------------------------------------------------


def test_the_right_words_decode_full_and_all_others_protected(lab: Lab):
    full, protected = decoded(lab, KEYWORD), decoded(lab, None)
    assert full != protected
    seen = {}
    for tried in (KEYWORD, PUBLIC_PASSPHRASE, "", WRONG, KEYWORD.upper()):
        version, picture = lab.decoded("cat", KEYWORD, tried)
        assert pixels(picture) == (full if version == "full" else protected)
        seen[tried] = version
    assert list(seen.values()) == ["full", "full", "protected", "wrong keyword", "wrong keyword"]


def test_render_mode_shows_both_versions_and_beliefs(lab: Lab):
    view = render_mode(lab, "cat", KEYWORD, "", prompt_list(PROMPTS))
    assert pixels(view.picture) == decoded(lab, None)
    assert pixels(view.full) == decoded(lab, KEYWORD)
    assert list(view.believed) == ["original", "full", "protected"]
    assert all(p.sum() == pytest.approx(1) for p in view.believed.values())
    assert view.says.startswith("cat, protected: read as “")
    assert view.says.endswith(" dB against the original")
    original = render_mode(lab, "cat", KEYWORD, None, prompt_list(PROMPTS))
    assert original.picture is lab.photos["cat"]
    assert "dB" not in original.says


def test_the_wipe_goes_from_one_version_to_the_other(lab: Lab, switch: ModeSwitch):
    full, protected = (lab.model.decompress(lab.file("cat", KEYWORD), words) for words in (KEYWORD, None))
    assert shown(switch, 0) == pixels(full)
    for share, width in ((0, 0), (0.5, 48), (1, 96)):
        switch.wipe.value = share
        both = protected.copy()
        both.paste(full.crop((0, 0, width, 64)))
        assert shown(switch) == pixels(wiped(full, protected, share)) == pixels(both)


def test_nothing_is_made_twice(switch: ModeSwitch, calls: Counter[str]):
    switch.photo.value = "coffee"
    for _ in range(3):
        for version in ("original", "full", "protected", "wrong keyword"):
            switch.version.value = version
        for t in (0, 0.5, 0.9, 1):
            switch.t.value = t
        switch.prompts.value, switch.prompts.value = "one\ntwo", PROMPTS
    # Conditions: the key, none, the wrong one, half and nine tenths of the key's.
    assert calls == {"compress": 1, "latents": 1, "picture": 5, "version_of": 5}
    switch.sealed.value = "other words"  # another file
    assert calls["compress"] == calls["latents"] == 2


@pytest.mark.parametrize("adapt", ["carried", "sealed"])
def test_a_shield_made_for_the_photo_shows_its_two_versions(lab: Lab, adapt: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "readers", lambda: load_target("tiny"))
    switch = ModeSwitch(lab, KEYWORD, WRONG, PROMPTS)
    switch.wipe.value = 0
    trained = shown(switch)
    switch.shield.value = adapt
    assert lab.adapt == adapt
    assert shown(switch) != trained
    for version, words in {"full": KEYWORD, "protected": None, "wrong keyword": WRONG}.items():
        switch.version.value = version
        assert shown(switch) == decoded(lab, words)
        assert switch.version.value == version
    assert decoded(lab, KEYWORD) != decoded(lab, None)
    switch.t.value = 0.5  # the way between is the trained shield's
    assert (switch.shield.value, lab.adapt, switch.version.value) == ("trained", None, "between")


# --- the mode switch --------------------------------------------------------------------------------


def test_typing_a_keyword_changes_version_and_picture(lab: Lab, switch: ModeSwitch):
    assert (switch.version.value, shown(switch)) == ("protected", decoded(lab, None))
    seen = [switch.says.value]
    for words, version in ((KEYWORD, "full"), (WRONG, "wrong keyword"), (PUBLIC_PASSPHRASE, "full"), ("", "protected")):
        switch.tried.value = words
        assert switch.version.value == version
        assert shown(switch) == decoded(lab, words or None)
        assert f"cat, {version}: " in switch.says.value
        seen.append(switch.says.value)
    assert len(set(seen)) == 3


def test_switching_the_version_types_its_keyword(lab: Lab, switch: ModeSwitch):
    for version, words in (("full", KEYWORD), ("wrong keyword", WRONG), ("protected", ""), ("full", KEYWORD)):
        switch.version.value = version
        assert switch.tried.value == words
        assert shown(switch) == decoded(lab, words or None)
    switch.version.value = "original"
    assert shown(switch) == pixels(lab.photos["cat"])
    assert switch.tried.value == KEYWORD  # nothing was typed
    switch.tried.value = ""
    assert switch.version.value == "protected"


def test_beliefs_are_escaped_bars(switch: ModeSwitch):
    switch.prompts.value = "a <b>cat</b>\na dog"
    bars = switch.stage.children[2].value
    assert "a &lt;b&gt;cat&lt;/b&gt;" in bars
    assert bars.count("height:5px") == 2 * 3  # prompts, versions


# --- uploads ----------------------------------------------------------------------------------------


def upload(name: str, content: bytes) -> tuple[dict, ...]:
    """What Jupyter sends."""
    about = {"name": name, "type": "image/png", "size": len(content), "last_modified": datetime(2025, 1, 1)}
    return (about | {"content": memoryview(content)},)


def picture_file(kind: str = "PNG", size: tuple[int, int] = (200, 100), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(data.rocket()).resize(size).convert(mode).save(file, kind)
    return file.getvalue()


def test_an_uploaded_photo_is_taken_in_and_shown(lab: Lab, switch: ModeSwitch):
    switch.version.value = "original"
    switch.upload.value = upload("my rocket.v2.png", picture_file(mode="L"))
    assert switch.photo.value == "my rocket.v2"
    assert switch.photo.options == ("my rocket.v2", "cat", "astronaut", "coffee")
    assert shown(switch) == pixels(lab.photos["my rocket.v2"])
    assert shown(switch)[0] == (128, 64)
    switch.version.value = "full"
    assert shown(switch) == decoded(lab, KEYWORD, "my rocket.v2")
    switch.upload.value = upload("cat.jpg", picture_file("JPEG"))
    assert switch.photo.value == "cat 2"
    switch.upload.value = upload("cat.jpg", picture_file("JPEG", (100, 100)))
    assert switch.photo.value == "cat 3"
    assert (switch.version.value, shown(switch)) == ("full", decoded(lab, KEYWORD, "cat 3"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("notes.txt", b"no picture at all", "“notes.txt” cannot be read as a picture"),
        ("empty.png", b"", "“empty.png” cannot be read"),
        ("<i>.png", picture_file()[:500], "“&lt;i&gt;.png” cannot be read"),
        ("short.jpg", picture_file("JPEG")[:300], "“short.jpg” cannot be read"),
        ("float.tif", picture_file("TIFF", mode="F"), "“float.tif” cannot be read"),
        ("line.png", picture_file(size=(500, 10)), "“line.png” is 500 x 10"),
    ],
)
def test_an_unreadable_upload_is_a_sentence(switch: ModeSwitch, name: str, content: bytes, says: str):
    before = shown(switch)
    switch.upload.value = upload(name, content)
    assert says in complaint(switch)
    assert switch.photo.options == ("cat", "astronaut", "coffee")
    switch.upload.value = ()
    assert shown(switch) == before


# --- the slider -------------------------------------------------------------------------------------


def test_the_slider_walks_from_protected_to_full(lab: Lab, switch: ModeSwitch):
    seen = {}
    for t in (1.0, 0.9, 0.7, 0.0):
        switch.t.value = t
        seen[t] = (shown(switch), switch.says.value)
        assert switch.version.value == "between"
        assert f"β = {t:.1f} c" in switch.says.value
    assert len(set(seen.values())) == 4
    assert seen[0.0][0] == decoded(lab, None)
    assert seen[1.0][0] == decoded(lab, KEYWORD)
    switch.version.value = "full"
    assert switch.t.value == 1
    switch.prompts.value = ""
    assert "here are 0" in complaint(switch)
