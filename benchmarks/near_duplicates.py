"""What a perceptual hash finds: made near duplicates of photos, and pairs of photos that are none, by distance.

    python benchmarks/near_duplicates.py PHOTOS [--photos 1000] [--hashes 1200000]

PHOTOS is a folder of photos. Of a sample of them near duplicates are made, and the share of those within a distance of
their own photo is found, percent; then pairs within it among all of the photos, to be looked at; then the seconds in
which pairs are looked for among so many drawn hashes.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from imagenet_pipeline.records.image_files import ImageTree
from imagenet_pipeline.records.perceptual_hash import near_pairs, perceptual_hash

DISTANCES = (0, 2, 4, 6, 8, 10)
Made = Callable[[Image.Image], Image.Image]
KINDS: dict[str, tuple[Made, int]] = {
    "re-encoded, quality 75": (lambda image: image, 75),
    "re-encoded, quality 30": (lambda image: image, 30),
    "resized to 160 px": (lambda image: image.resize((160, 160), Image.Resampling.LANCZOS), 95),
    "resized to 64 px": (lambda image: image.resize((64, 64), Image.Resampling.BILINEAR), 95),
    "enlarged to 500 px": (lambda image: image.resize((500, 500), Image.Resampling.BICUBIC), 95),
    "pressed to 4:3": (lambda image: image.resize((224, 168), Image.Resampling.LANCZOS), 95),
    "grey": (lambda image: image.convert("L"), 95),
    "a fifth brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 95),
    "contrast 1.3": (lambda image: ImageEnhance.Contrast(image).enhance(1.3), 95),
    "turned by 2 degrees": (lambda image: image.rotate(2, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)), 95),
    "2 % cut off each side": (lambda image: cut(image, 0.02), 95),
    "5 % cut off each side": (lambda image: cut(image, 0.05), 95),
    "mirrored": (ImageOps.mirror, 95),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--hashes", type=int, default=1_200_000)
    arguments = parser.parse_args()
    paths = ImageTree(arguments.folder).images(arguments.folder)
    chosen = np.random.default_rng(0).choice(len(paths), min(arguments.photos, len(paths)), replace=False)
    say("kind", *map(str, DISTANCES))
    for kind, (made, quality) in KINDS.items():
        apart = np.array([distance(paths[place], made, quality) for place in chosen.tolist()])
        say(kind, *(f"{100 * (apart <= most).mean():.1f}" for most in DISTANCES))
    read = [perceptual_hash(path.read_bytes(), upright=True) for path in paths]
    *_, apart = near_pairs(np.array([number for number in read if number is not None], np.uint64), max(DISTANCES))
    say(f"pairs among {len(paths):,}", *(str((apart <= most).sum()) for most in DISTANCES))
    hashes = np.random.default_rng(0).integers(0, 2**64, arguments.hashes, np.uint64)
    for most in (0, 4, 6):
        started = time.process_time()
        near_pairs(hashes, most)
        say(f"distance {most}, {len(hashes):,} drawn hashes", f"{time.process_time() - started:.1f} s of a processor")


def distance(path: Path, made: Made, quality: int) -> int:
    """Bits between the hashes of a photo and of what is made of it."""
    stream = io.BytesIO()
    made(Image.open(path).convert("RGB")).save(stream, "JPEG", quality=quality)
    own, other = perceptual_hash(path.read_bytes()), perceptual_hash(stream.getvalue())
    if own is None or other is None:
        raise SystemExit(f"{path} cannot be read")
    return (own ^ other).bit_count()


def cut(image: Image.Image, share: float) -> Image.Image:
    """The image without a share of it at each side."""
    across, down = round(image.width * share), round(image.height * share)
    return image.crop((across, down, image.width - across, image.height - down))


def say(*cells: str) -> None:
    """Print a row of a Markdown table."""
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
