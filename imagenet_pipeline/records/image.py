"""One image at a time: what it really is, whether it can be used, and its pixels.

The header is read (Pillow, which decodes lazily) and held against the limits before anything is decoded
(OpenCV >= 4.11; older ones accept truncated JPEGs: opencv/opencv#26488).
"""

from __future__ import annotations

import functools
import io
import logging
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from imagenet_pipeline import files
from imagenet_pipeline.errors import BadInput
from imagenet_pipeline.records import jpeg
from imagenet_pipeline.records.jpeg import Encoded

try:
    from imagenet_pipeline.records.area_average import average as average
except ImportError:  # it was installed where no compiler was
    average = None  # type: ignore[assignment]
try:
    from imagenet_pipeline.records import jpeg_crop
except ImportError:  # it was installed where no compiler was
    jpeg_crop = None  # type: ignore[assignment]

log = logging.getLogger("imagenet_pipeline")
FILE_LIMIT_BYTES = 64 * 2**20
SIDE_LIMIT_PIXELS = 16_384
AREA_LIMIT_PIXELS = 50_000_000
REDUCTIONS = (2, 4, 8)
"""Reductions for which libjpeg-turbo's transforms have vector instructions; others take longer than none."""
DAMAGED = "damaged"
"""Begins the reason, and is the action, where an image can be decoded and part of its picture is lost."""
READABLE_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "TIFF", "PPM"})

# Turning is decided here from the EXIF tag, so that stored pixels never depend on a reader's habits.
_DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_ORIENTATION_TAG = 0x0112
# EXIF orientations, by what has to be undone; of a picture that lies on its side, after it has been stood up.
LYING, LEFT_FOR_RIGHT, UPSIDE_DOWN = frozenset((5, 6, 7, 8)), frozenset((2, 3, 6, 7)), frozenset((3, 4, 7, 8))
_MODE_TRAITS = {"RGB": "", "L": "", "1": "bilevel", "P": "palette", "RGBA": "alpha", "LA": "alpha"}
WITHOUT_CROP_DECODER = (
    "this installation has no JPEG crop decoder, so loading is slower, with the same pixels "
    "(apt-get install gcc libc6-dev libjpeg-dev, then pip install --force-reinstall --no-deps . in its source)"
)
_HEADERS = threading.Lock()
"""Held while Python's warning filters, which are the whole process's, are other than the user's."""


class Rejected(Exception):
    """This image cannot be used; the message is the reason."""


class Box(NamedTuple):
    """A rectangle of whole pixels in the image; it may reach beyond the image's border."""

    left: int
    top: int
    width: int
    height: int


class LazyImage:
    """An RGB image whose pixels are decoded when they are asked for: all of them, or a part.

    height, width: in pixels, known at once.
    Errors of decoding (BadInput, as `decode_rgb`) come when the image is made, or when pixels are asked for.
    """

    def __init__(self, data: Encoded, damaged: Callable[[str], None] | None = None) -> None:
        """An encoded image; with `damaged`, as in `decode_rgb`, all of it is decoded at once."""
        head = _bounded_head(data)
        self._data, self._head = data, head
        self._pixels: NDArray[np.uint8] | None = None
        self._was_cropped = False
        if head and not damaged and _is_quick(head):
            self.height, self.width, _, _ = head
        else:
            self._pixels = _bounded_rgb(data, head, damaged)
            self.height, self.width = self._pixels.shape[:2]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> LazyImage:
        """An image that is decoded already, [height, width, 3]."""
        image = cls.__new__(cls)
        image._data, image._head, image._pixels = b"", None, pixels
        image.height, image.width = pixels.shape[:2]
        return image

    def crop(self, box: Box) -> NDArray[np.uint8]:
        """The pixels of a box inside the image, [box.height, box.width, 3]: those that the whole has there.

        The first box of an image is decoded alone where that can be. Damage below it is then not seen.
        """
        if self._pixels is None and not self._was_cropped:
            self._was_cropped = True
            part = _decoded_part(self._data, self._head, box)
            if part is not None:
                return part
        return self.whole()[box.top : box.top + box.height, box.left : box.left + box.width]

    def whole(self) -> NDArray[np.uint8]:
        """All pixels, [height, width, 3]."""
        if self._pixels is None:
            self._pixels = _bounded_rgb(self._data, self._head)
        return self._pixels


@dataclass(frozen=True)
class Header:
    """The header of an image file: its real type, size in pixels and EXIF orientation (1..8).

    `traits` names what makes it other than a plain 8-bit RGB or grey JPEG.
    """

    format: str
    width: int
    height: int
    orientation: int
    traits: tuple[str, ...]


def calm() -> None:
    """Keep OpenCV to a single thread and off stderr in a worker process: workers are parallel already."""
    cv2.setNumThreads(1)
    silence_opencv(but_errors=True)


def silence_opencv(but_errors: bool = False) -> None:
    """Keep OpenCV's own lines off stderr, all of them or all but errors."""
    logging = getattr(cv2.utils, "logging", cv2)  # the call moved in OpenCV 5
    logging.setLogLevel(2 if but_errors else 0)


def crop_decoder() -> str | None:
    """The version of libjpeg-turbo inside the compiled crop decoder; None where that is not there."""
    return jpeg_crop.LIBJPEG_TURBO if jpeg_crop else None


def library_versions() -> dict[str, str]:
    """Versions of the libraries on which the stored bytes and the mean depend."""
    return {
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "simplejpeg": simplejpeg.__version__,
    }


def read_header(data: bytes) -> Header:
    """Read type, size and orientation without decoding. Raises Rejected where a limit is passed."""
    if not data:
        raise Rejected("empty file")
    if len(data) > FILE_LIMIT_BYTES:
        raise Rejected(f"file of {len(data):,} bytes, more than {FILE_LIMIT_BYTES:,}")
    if data[:64].lstrip().startswith(b"<"):
        raise Rejected("text (HTML or SVG), not an image")
    if files.is_pointer(data):
        raise Rejected(f"{files.POINTER}; {files.POINTER_ADVICE}")
    if excess := jpeg.excess(data, jpeg.read_head(data)):
        raise Rejected(excess)
    with _HEADERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                _check_readable(image)
                orientation = _orientation(image)
                traits = _traits(image, data, orientation)
                return Header(str(image.format), image.width, image.height, orientation, traits)
        except Rejected:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Rejected(f"more than {AREA_LIMIT_PIXELS:,} pixels") from error
        except Exception as error:  # Pillow's parsers raise almost anything on hostile bytes
            raise Rejected("not an image that can be read") from error


def decode_rgb(data: Encoded, damaged: Callable[[str], None] | None = None, reduction: int = 1) -> NDArray[np.uint8]:
    """Decode an image to RGB, uint8 [height, width, 3], as it lies (EXIF is not followed).

    With `reduction` (2, 4, 8) a JPEG whose picture is whole is decoded to ceil(height / reduction) rows and as many
    columns: libjpeg takes the lower frequencies of each block alone, and looks through all coded data as ever.
    `damaged` is called with its library's words on a JPEG or TIFF part of whose picture is lost; many can be decoded
    all the same. (PNG is refused where its checksums differ; WebP, BMP and PPM have none that would tell.)
    Raises BadInput when it cannot be decoded, is truncated, or passes the limits above or those of `jpeg`.
    """
    return _bounded_rgb(data, _bounded_head(data), damaged, reduction)


def refuse_damaged(words: str) -> None:
    """Raise BadInput for a damaged image; for `decode_rgb`."""
    raise BadInput(f"image is damaged ({words})")


def decode_file(
    data: bytes, damaged: Callable[[str], None] | None = None, least_edge: int | None = None
) -> tuple[Header, NDArray[np.uint8]]:
    """Decode an image file: its header, and its RGB pixels as they lie. Raises Rejected.

    `damaged` is as for `decode_rgb`. With `least_edge` a JPEG is decoded to a half, a quarter or an eighth of its
    sides, the least of them that leaves its shorter edge so many pixels, at a fraction of the time and memory.
    """
    header = read_header(data)
    return header, decode_as(header, data, damaged, least_edge)


def decode_as(
    header: Header, data: bytes, damaged: Callable[[str], None] | None = None, least_edge: int | None = None
) -> NDArray[np.uint8]:
    """Decode an image file whose header was read, as `decode_file` does."""
    fitting = [part for part in REDUCTIONS if least_edge and min(header.height, header.width) >= part * least_edge]
    reduction = max(fitting, default=1)
    try:
        pixels = decode_rgb(data, damaged, reduction)
    except BadInput as error:
        raise Rejected("cannot be decoded: truncated or damaged") from error
    sizes = {(-(-header.height // part), -(-header.width // part), 3) for part in (1, reduction)}
    if pixels.shape not in sizes:
        raise Rejected("decoded size differs from the header's")
    return pixels


def shrink(pixels: NDArray[np.uint8], short_edge: int) -> NDArray[np.uint8]:
    """Resize so that the shorter edge has `short_edge` pixels, keeping the aspect; for shrinking only."""
    height, width = pixels.shape[:2]
    scale = short_edge / min(height, width)
    size = max(short_edge, round(width * scale)), max(short_edge, round(height * scale))
    return average_areas(pixels, np.empty((*size[::-1], 3), np.uint8))


def average_areas(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrink RGB pixels to all of `out` by averaging over areas; OpenCV's INTER_AREA, quicker where it was compiled."""
    height, width = out.shape[:2]
    if average is not None and (pixels.shape[0] % height or pixels.shape[1] % width):
        average(pixels, out)
        return out
    return np.asarray(cv2.resize(pixels, (width, height), dst=out, interpolation=cv2.INTER_AREA), np.uint8)


def enlarge(pixels: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Resize to `times` the size, smoothly."""
    return np.asarray(cv2.resize(pixels, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC), np.uint8)


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode uint8 RGB [height, width, 3] (4:2:0 chroma) or grey [height, width] as a JPEG."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise Rejected("cannot be encoded as JPEG")
    return bytes(encoded.tobytes())


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode uint8 RGB [height, width, 3] or grey [height, width] without loss."""
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".png", pixels)
    if not done:
        raise Rejected("cannot be encoded as PNG")
    return bytes(encoded.tobytes())


def turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation 1..8 (JEITA CP-3451, tag 0x0112)."""
    if orientation in LYING:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in LEFT_FOR_RIGHT:
        pixels = pixels[:, ::-1]
    if orientation in UPSIDE_DOWN:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _bounded_head(data: Encoded) -> jpeg.Head | None:
    """The head of a plain JPEG, None of anything else; BadInput where it would take too long to decode."""
    if jpeg_crop is None:
        head = jpeg.read_head(data)
    else:
        found = jpeg_crop.read_head(data)
        head = found and jpeg.Head(*found)
    if excess := jpeg.excess(data, head):
        raise BadInput(f"image cannot be decoded ({excess})")
    return head


def _decoded_part(data: Encoded, head: jpeg.Head | None, box: Box) -> NDArray[np.uint8] | None:
    """The pixels of a box, decoded alone; None where that cannot be done."""
    if head is None or not head.single_scan or box.width < 1 or box.height < 1:
        return None
    if jpeg_crop is None:
        _tell_slower()
        return None
    part = np.empty((box.height, box.width, 3), np.uint8)
    return part if jpeg_crop.decode(data, *box, part) else None


@functools.cache
def _tell_slower() -> None:
    log.info("photos are decoded whole: %s", WITHOUT_CROP_DECODER)


def _bounded_rgb(
    data: Encoded, head: jpeg.Head | None, damaged: Callable[[str], None] | None = None, reduction: int = 1
) -> NDArray[np.uint8]:
    if head and _is_quick(head):
        try:
            # The quick way; on all of 6,300 photos it gave OpenCV's pixels.
            rows, columns = (-(-side // reduction) if reduction > 1 else 0 for side in head[:2])
            return np.asarray(simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns))
        except ValueError:
            # It stops at every fault; OpenCV goes on after some of them, and says so on stderr alone.
            pass
    try:
        read_header(bytes(data))
    except Rejected as reason:
        raise BadInput(f"image cannot be decoded ({reason})") from reason
    if damaged and (words := _damage(data)):
        damaged(words)
    pixels = _decode(data)
    if pixels is None:
        raise BadInput("image cannot be decoded (truncated, or not an image)")
    return pixels


def _damage(data: Encoded) -> str:
    if data[:2] == jpeg.START:
        return jpeg.damage(data)
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return ""
    with _HEADERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except OSError as error:  # libtiff's; OpenCV goes on after it
            return f"TIFF {error}" if str(error).startswith("decoder error") else ""
    return ""


def _decode(data: Encoded) -> NDArray[np.uint8] | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE)
    except cv2.error:
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _check_readable(image: Image.Image) -> None:
    if image.format not in READABLE_FORMATS:
        raise Rejected(f"format {image.format} is not used")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise Rejected(f"animated or several pages ({image.format})")
    if min(image.size) < 1 or max(image.size) > SIDE_LIMIT_PIXELS:
        raise Rejected(f"{image.width} x {image.height} pixels, a side not in 1..{SIDE_LIMIT_PIXELS:,}")
    if image.width * image.height > AREA_LIMIT_PIXELS:
        raise Rejected(f"{image.width} x {image.height}, more than {AREA_LIMIT_PIXELS:,} pixels")


def _is_quick(head: jpeg.Head) -> bool:
    height, width, components, _ = head
    sides_fit = 0 < height <= SIDE_LIMIT_PIXELS and 0 < width <= SIDE_LIMIT_PIXELS
    return sides_fit and height * width <= AREA_LIMIT_PIXELS and components in (1, 3)


def _orientation(image: Image.Image) -> int:
    try:
        value: Any = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if value in range(1, 9) else 1
    except Exception:  # broken EXIF is common and harmless
        return 1


def _traits(image: Image.Image, data: bytes, orientation: int) -> tuple[str, ...]:
    traits = []
    if image.format != "JPEG":
        traits.append(str(image.format).lower())
    elif jpeg.frame_marker(data) not in jpeg.USUAL_FRAMES:
        traits.append("unusual-jpeg")
    mode = _MODE_TRAITS.get(image.mode, image.mode.lower())
    if image.mode.startswith("I") or (image.format == "PNG" and data[24] == 16):
        mode = "16-bit"
    if "transparency" in image.info:
        mode = mode or "alpha"
    if mode:
        traits.append(mode)
    if orientation != 1:
        traits.append("exif-turned")
    return tuple(traits)
