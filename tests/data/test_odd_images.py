"""Image files of every odd kind: the right picture, or one reason that says what is wrong, in bounded memory."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fftmoe.data.images import read_pixels, readable_pixels
from fftmoe.data.undivided import read_undivided
from fftmoe.errors import InputError

SIZE = (6, 4)  # height, width
TOP, BOTTOM = (200, 100, 50), (0, 0, 255)


def picture() -> Image.Image:
    """Four wide and six high: the upper half has one colour, the lower half another."""
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    pixels[:3], pixels[3:] = TOP, BOTTOM
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    """A picture that lies on its side, and says so in its EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(picture().transpose(Image.Transpose.ROTATE_90), "png", exif=exif)


def made_png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def of_16_bits() -> bytes:
    rows = [b"\0" + struct.pack(">3H", *(257 * value for value in colour)) * 4 for colour in (TOP, BOTTOM)]
    return made_png(4, 6, 16, 2, rows[0] * 3 + rows[1] * 3)


def transparent() -> Image.Image:
    image = picture()
    image.putalpha(Image.new("L", image.size, 7))
    return image


def moving(kind: str) -> bytes:
    return saved(picture(), kind, save_all=True, append_images=[Image.new("RGB", picture().size)])


RIGHT: dict[str, Callable[[], bytes]] = {
    "turned.png": turned,
    "16 bits.png": of_16_bits,
    "cmyk.tif": lambda: saved(picture().convert("CMYK"), "tiff"),
    "palette.png": lambda: saved(picture().quantize(5), "png"),
    "transparent palette.png": lambda: saved(picture().quantize(5), "png", transparency=b"\0\x80\xff"),
    "transparent.png": lambda: saved(transparent(), "png"),
    "moving.gif": lambda: moving("gif"),
    "moving.png": lambda: moving("png"),
    "damaged exif.png": lambda: saved(picture(), "png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "a png.jpg": lambda: saved(picture(), "png"),
}
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    **{
        f"cut.{kind}": (lambda kind=kind: (whole := saved(picture(), kind))[: len(whole) // 2], "")
        for kind in ("png", "jpeg", "gif", "tiff", "webp")
    },
    "empty.png": (lambda: b"", "unknown format"),
    "text.png": (lambda: b"hello", "unknown format"),
    "drawing.jpg": (lambda: b"<svg/>", "unknown format"),
    "huge.png": (lambda: made_png(60_000, 60_000, 8, 2, b""), "pixels"),
    "large.png": (lambda: made_png(10_000, 8_000, 8, 2, b""), "10000 x 8000 pixels"),
    "wide.png": (lambda: made_png(2**20, 1, 8, 0, bytes(2**20 + 1)), "a side has at most 65536"),
    "grey of 16 bits.png": (lambda: saved(Image.new("I;16", (4, 6)), "png"), "more than 8 bits"),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Palette images")
def test_an_odd_file_is_the_picture_that_it_shows(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(RIGHT[name]())
    reasons, pixels = readable_pixels([tmp_path / name], None, SIZE)
    assert reasons == [None]
    expected = torch.from_numpy(np.array(picture())).permute(2, 0, 1)
    assert (pixels[0].int() - expected.int()).abs().max() <= 1  # a palette and inks are rounded


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_file_that_is_no_picture_has_a_reason_and_costs_no_other(tmp_path: Path, name: str):
    make, words = WRONG[name]
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(make())
    (folder / "good.png").write_bytes(saved(picture(), "png"))
    reasons, pixels = readable_pixels([folder / name, folder / "good.png"], None, SIZE)
    assert reasons[1] is None
    assert len(pixels) == 1
    assert words in str(reasons[0])
    table = read_undivided(tmp_path / "photos")
    assert table is not None
    with pytest.raises(InputError, match="holds no image in row") as refused:
        read_pixels(table, "image", SIZE)
    assert name in str(refused.value)


@pytest.mark.parametrize("kind", ["loop", "nowhere", "pipe"])
def test_what_is_no_file_is_named_and_blocks_nothing(tmp_path: Path, kind: str):
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    path = folder / "odd.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else folder / "nothing.png")
    table = read_undivided(tmp_path / "photos")
    assert table is not None
    with pytest.raises(InputError, match=r"odd\.png"):
        read_pixels(table, "image", SIZE)
    assert readable_pixels([path], None, SIZE)[0] != [None]
