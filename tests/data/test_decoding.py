"""Image files of every kind, whole and broken, become the pixels that a person sees."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from volution import data
from volution.data import decoding

RED, GREEN = (255, 0, 0), (0, 255, 0)


def encoded(image, kind="png", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def read(image, kind="png", channels=3, **settings):
    return data.decode_image(encoded(image, kind, **settings), "it", channels)


def flag():
    """Red above green, and a blue corner at the top left; no turn of it is like another."""
    image = Image.new("RGB", (6, 4), RED)
    image.paste(GREEN, (0, 2, 6, 4))
    image.paste((0, 0, 255), (0, 0, 2, 1))
    return image


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(kind, orientation):
    # What a camera stores is what has to be undone.
    stored = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.ROTATE_270, Image.Transpose.FLIP_TOP_BOTTOM],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    upright = flag().resize((48, 32), Image.Resampling.NEAREST)
    image = upright
    for turn in stored:
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lossless = {"lossless": True} if kind == "webp" else {}
    found = read(image, kind, exif=exif, **lossless)
    assert found.size == upright.size
    difference = np.asarray(found).astype(int) - np.asarray(upright)
    assert np.abs(difference).mean() < (12 if kind == "jpeg" else 0.01)


def test_damaged_exif_does_not_cost_the_image():
    content = encoded(flag(), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)
    assert data.decode_image(content, "it").size == (6, 4)
    assert data.decode_image(content, "it").getpixel((5, 3))[1] > 200


def test_grey_of_16_bits_is_scaled_not_cut_off():
    ramp = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    for kind in ("png", "tiff", "ppm"):
        for channels in (1, 3):
            found = np.asarray(read(Image.fromarray(ramp), kind, channels))
            grey = found if channels == 1 else found[..., 0]
            assert grey.tolist() == [[0, 0, 1, 1, 128, 255]], kind


def test_values_without_a_meaning_are_refused():
    with pytest.raises(ValueError, match=r"it is not a readable image: .* floating point"):
        read(Image.new("F", (4, 4), 0.5), "tiff")
    with pytest.raises(ValueError, match="32-bit integers"):
        read(Image.new("I", (4, 4), 70_000), "tiff")


def palette(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    return read(image, "png", transparency=transparency)


def test_what_is_transparent_lies_on_white():
    half = read(Image.new("RGBA", (2, 2), (255, 0, 0, 128)))
    assert half.getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
    # The colour below full transparency is an accident of the program that wrote the file.
    assert read(Image.new("RGBA", (2, 2), (9, 9, 9, 0))).getpixel((1, 1)) == (255, 255, 255)
    assert read(Image.new("LA", (2, 2), (9, 0)), channels=1).getpixel((1, 1)) == 255
    for transparency in (1, b"\xff\x00"):
        found = palette(transparency)
        assert [found.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]
    key = read(Image.new("RGB", (2, 2), RED), transparency=RED)
    assert key.getpixel((0, 0)) == (255, 255, 255)
    opaque = Image.effect_noise((8, 8), 90).convert("RGB")
    assert read(opaque.convert("RGBA")).tobytes() == opaque.tobytes()


def test_other_colours():
    ink = read(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "jpeg")
    assert ink.mode == "RGB"
    assert ink.getpixel((2, 2)) == pytest.approx(RED, abs=3)
    assert read(Image.new("1", (3, 3), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert read(Image.new("L", (3, 3), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert read(Image.new("L", (3, 3), 77), channels=1).getpixel((0, 0)) == 77
    red = read(Image.new("RGB", (3, 3), RED), channels=1)
    assert (red.mode, red.getpixel((0, 0))) == ("L", 76)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    lossless = {"lossless": True} if kind == "webp" else {}
    found = read(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert found.getpixel((3, 3)) == RED


def test_a_plain_photo_is_not_copied(monkeypatch):
    def copied(*_, **__):
        raise AssertionError("an RGB image was converted")

    content = encoded(flag(), "jpeg")
    monkeypatch.setattr(Image.Image, "convert", copied)
    monkeypatch.setattr(Image.Image, "copy", copied)
    monkeypatch.setattr(Image.Image, "transpose", copied)
    assert data.decode_image(content, "it").mode == "RGB"


def test_one_pixel_is_enough(tmp_path):
    Image.new("RGB", (1, 1), RED).save(tmp_path / "dot.png")
    config = data.InputConfig(3, 32, (0.0,) * 3, (1.0,) * 3)
    image = data.open_image(tmp_path / "dot.png")
    assert torch.equal(
        config.transform()(image), torch.tensor(RED).view(3, 1, 1).expand(3, 32, 32) / 255
    )
    varied = config.training_transform(data.Augmentation(auto_augment="rand-m9"))
    assert all(varied(image).shape == (3, 32, 32) for _ in range(20))


def bomb(width, height):
    """A PNG whose head promises many pixels and whose body has none."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


class TestBombs:
    def test_they_are_refused_before_decoding(self, monkeypatch):
        monkeypatch.setattr(Image.Image, "load", None)
        with pytest.raises(ValueError, match="--max_pixels") as error:
            data.decode_image(bomb(20_000, 20_000), "big.png")
        assert str(error.value) == (
            "big.png has 20000 x 20000 pixels, more than max_pixels = 100000000 allows; to read it "
            "all the same raise --max_pixels"
        )

    def test_the_limit_is_the_readers_own(self):
        content = encoded(Image.new("RGB", (30, 20)))
        assert data.decode_image(content, "it", max_pixels=600).size == (30, 20)
        with pytest.raises(ValueError, match="30 x 20 pixels, more than max_pixels = 599"):
            data.decode_image(content, "it", max_pixels=599)

    def test_pillows_limit_does_not_count_and_stays(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        monkeypatch.setattr(decoding, "_PILLOWS_LIMIT", 100)
        for size in ((12, 12), (40, 40)):  # it would warn of the one and refuse the other
            image = read(Image.new("RGB", size, RED))
            assert image.size == size
            with decoding.unlimited(image):
                assert image.crop((0, 0, *size)).size == size
        assert Image.MAX_IMAGE_PIXELS == 100


def test_nothing_is_drawn_by_other_programs():
    with pytest.raises(ValueError, match=r"it is a drawing \(EPS\)"):
        read(Image.new("RGB", (4, 4)), "eps")


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "tiff", "bmp"])
def test_every_cut_and_every_flipped_byte_is_an_image_or_a_value_error(kind):
    image = Image.effect_noise((24, 16), 90).convert("RGB")
    whole = encoded(image, kind)
    rng = np.random.default_rng(0)
    broken = [whole[:n] for n in rng.integers(0, len(whole), 60)]
    for place in rng.integers(0, min(len(whole), 200), 120):
        changed = bytearray(whole)
        changed[place] = rng.integers(256)
        broken.append(bytes(changed))
    messages = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in broken:
            try:
                assert data.decode_image(content, "it").mode == "RGB"
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) >= 30
    assert all(message.startswith("it ") for message in messages)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image at"):
        data.open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match=f"{tmp_path} is not a readable image: Is a directory"):
        data.open_image(tmp_path)
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(ValueError, match=r"text.jpg is not a readable image: cannot identify"):
        data.open_image(tmp_path / "text.jpg")
