"""Thirty plain lines: threads, simplejpeg and OpenCV, each thread a part of every batch; nothing is checked.

With the option `crop`, our crop decoder in the place of simplejpeg's decoder.
"""

from __future__ import annotations

import mmap
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import serve
import simplejpeg
from numpy.typing import NDArray

AHEAD = 4
Pixels = NDArray[np.uint8]


def main() -> None:
    path, threads, option = serve.arguments()
    cv2.setNumThreads(0)
    places = serve.extents(path)
    decode = decode_part if option == "crop" else decode_whole
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def fill(rows: Pixels, numbers: list[int]) -> None:
            for row, number in zip(rows, numbers, strict=True):
                start, stop = places[number]
                part = decode(data[start:stop])
                cv2.resize(part, (serve.SIZE, serve.SIZE), dst=row)
                if random.random() < 0.5:
                    cv2.flip(row, 1, dst=row)

        def epoch() -> Iterator[Pixels]:
            order = random.sample(range(len(places)), len(places))
            cuts = [order[at : at + serve.BATCH_SIZE] for at in range(0, len(order), serve.BATCH_SIZE)]
            waiting: deque[tuple[Pixels, list[Future[None]]]] = deque()
            with ThreadPoolExecutor(threads) as pool:
                for cut in [cut for cut in cuts if len(cut) == serve.BATCH_SIZE]:
                    batch = np.empty((len(cut), serve.SIZE, serve.SIZE, 3), np.uint8)
                    waiting.append(
                        (batch, [pool.submit(fill, batch[k::threads], cut[k::threads]) for k in range(threads)])
                    )
                    if len(waiting) > AHEAD:
                        yield finished(*waiting.popleft())
                while waiting:
                    yield finished(*waiting.popleft())

        serve.serve(epoch)


def finished(batch: Pixels, parts: list[Future[None]]) -> Pixels:
    for part in parts:
        part.result()
    return batch


def decode_whole(jpeg: bytes) -> Pixels:
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
    left, top, width, height = serve.crop_of(pixels.shape[1], pixels.shape[0])
    return np.asarray(pixels[top : top + height, left : left + width])


def decode_part(jpeg: bytes) -> Pixels:
    from imagenet_pipeline.records.image import Box, LazyImage

    image = LazyImage(jpeg)
    return image.crop(Box(*serve.crop_of(image.width, image.height)))


if __name__ == "__main__":
    main()
