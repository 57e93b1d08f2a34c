"""Pictures in and out: every Pillow mode gives upright 8-bit RGB or a sentence."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from psic_core.models import images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def array(image: Image.Image) -> np.ndarray:
    rgb = images.to_rgb(image)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


# --- modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_colour_spaces_come_back_nearly(mode: str):
    off = np.abs(array(PICTURE.convert(mode)).astype(int) - PIXELS)
    assert off.max() <= (12 if mode == "HSV" else 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_alpha_is_laid_on_white(mode: str):
    grey = Image.fromarray(np.full((1, 3), 100, np.uint8))
    alpha = Image.fromarray(np.array([[0, 128, 255]], np.uint8))
    rgba = Image.merge("RGBA", (grey, grey, grey, alpha))
    image = rgba.convert(mode)
    if mode == "PA":  # Pillow's own conversion ties alpha to the palette
        image = Image.new("PA", (3, 1))
        image.putpalette([100, 100, 100])
        image.putalpha(alpha)
    expected = [255, 255 + (100 - 255) * 128 / 255, 100]
    assert array(image)[0, :, 0] == pytest.approx(expected, abs=1.5)
    assert (array(image)[..., :1] == array(image)).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_sixteen_bits_are_scaled_and_not_clipped(mode: str):
    depth = np.array([[0, 257, 256 * 128, 65535]])
    dtype = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (4, 1), depth.astype(dtype).tobytes())
    assert array(image)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_32_bit_integers_are_refused(value: int, tmp_path: Path):
    image = Image.fromarray(np.array([[0, value]], dtype=np.int32))
    with pytest.raises(ValueError, match="32-bit integer picture has no defined white"):
        images.to_rgb(image)
    Image.fromarray(np.array([[0, 200]], dtype=np.int32)).save(tmp_path / "dark.tif")  # a file may mean any white
    with pytest.raises(ValueError, match="32-bit integer picture has no defined white"):
        images.load_image(tmp_path / "dark.tif")


# --- rotation --------------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_applied(orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    got = images.load_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(got), UPRIGHT[orientation](PIXELS))
    assert np.array_equal(array(got), np.asarray(got))  # and only once


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own, before it gives up
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"])
def test_damaged_exif_does_not_spoil_a_picture(exif: bytes, form: str, tmp_path: Path):
    PICTURE.save(tmp_path / "photo", form, exif=exif)
    with Image.open(tmp_path / "photo") as opened:
        expected = np.asarray(opened)
    assert np.array_equal(np.asarray(images.load_image(tmp_path / "photo")), expected)


# --- colours ---------------------------------------------------------------------------------------


def swapped_profile() -> bytes:
    """A profile whose red is sRGB's blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, blue, swapped = profile.index(b"rXYZ"), profile.index(b"bXYZ"), bytearray(profile)
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(swapped).replace(b"s\0R\0G\0B", b"o\0t\0h\0e").replace(b"sRGB", b"othe")


@pytest.mark.parametrize("alpha", [False, True])
def test_profile_is_converted_to_srgb(alpha: bool, tmp_path: Path):
    red = Image.new("RGBA" if alpha else "RGB", (4, 4), (255, 0, 0))
    red.save(tmp_path / "swapped.png", icc_profile=swapped_profile())
    got = np.asarray(images.load_image(tmp_path / "swapped.png"))[0, 0]
    assert got[2] > 240
    assert got[0] < 30


@pytest.mark.parametrize("profile", [b"garbage", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()])
def test_unusable_profile_does_not_spoil_a_picture(profile: bytes, tmp_path: Path):
    PICTURE.save(tmp_path / "odd.png", icc_profile=profile)
    assert np.array_equal(np.asarray(images.load_image(tmp_path / "odd.png")), PIXELS)


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted(images.SUFFIXES))
def test_every_listed_suffix_can_be_read(suffix: str, tmp_path: Path):
    path = tmp_path / f"picture{suffix}"
    PICTURE.resize((32, 24)).save(path)
    assert images.load_image(path).size == (32, 24)
    assert images.load_image(str(path)).mode == "RGB"


def test_file_that_is_no_picture_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no picture at .*absent\.png"):
        images.load_image(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read .*text\.png"):
        images.load_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match="cannot read"):
        images.load_image(tmp_path)


@pytest.mark.parametrize("size", [(13000, 13000), (65536, 1), (7072, 7071)])
def test_picture_beyond_the_limit_is_refused_before_it_is_decoded(size: tuple[int, int], tmp_path: Path):
    file = tmp_path / "bomb.png"
    file.write_bytes(claiming(size))  # a header alone: decoding it would be another error
    with pytest.raises(ValueError, match=r"bomb.*(more than 50 megapixels; raise|at most 65535)"):
        images.load_image(file)


def claiming(size: tuple[int, int]) -> bytes:
    """A PNG whose header claims a size."""
    PICTURE.save(buffer := io.BytesIO(), "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_formats_off_the_list_are_not_tried(tmp_path: Path):
    """Pillow hands PostScript to Ghostscript, whatever a file's name says."""
    (tmp_path / "photo.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(ValueError, match="photo.*it is none of PNG, JPEG"):
        images.load_image(tmp_path / "photo.png")


def test_animation_is_said_to_be_one(tmp_path: Path):
    PICTURE.save(tmp_path / "moving.gif", save_all=True, append_images=[PICTURE.rotate(180)])
    with pytest.warns(UserWarning, match=r"moving\.gif.* holds 2 pictures; only the first is taken"):
        assert images.load_image(tmp_path / "moving.gif").size == (7, 5)


# --- tensors ---------------------------------------------------------------------------------------


def test_tensor_has_height_before_width_and_lies_in_0_to_1():
    x = images.to_tensor(PICTURE)
    assert x.shape == (1, 3, 5, 7)
    assert x.dtype == torch.float32
    assert torch.equal(x[0].permute(1, 2, 0), torch.from_numpy(PIXELS).float() / 255)


def test_to_pil_clamps_and_rounds_to_nearest():
    x = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.7])[None, None, None]
    got = images.to_pil(x.expand(1, 3, 1, 6).requires_grad_())
    assert np.asarray(got)[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@given(height=st.integers(1, 70), width=st.integers(1, 70), multiple=st.sampled_from([1, 16, 64]))
def test_padding_repeats_the_edge_and_cropping_undoes_it(height: int, width: int, multiple: int):
    x = torch.arange(3.0 * height * width).reshape(1, 3, height, width)
    padded = images.pad_to(x, multiple)
    tall, wide = padded.shape[-2:]
    assert tall % multiple == wide % multiple == 0
    assert 0 <= tall - height < multiple
    assert 0 <= wide - width < multiple
    assert torch.equal(padded[..., :height, :width], x)
    assert (padded[..., height:, :width] == x[..., -1:, :]).all()
    assert (padded[..., width:] == padded[..., width - 1 : width]).all()
