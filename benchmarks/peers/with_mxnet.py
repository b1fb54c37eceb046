"""MXNet's iterators: ImageRecordIter (float32) or, with the option `uint8`, ImageRecordUInt8Iter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mxnet
import serve


def main() -> None:
    path, threads, option = serve.arguments()
    kind = mxnet.io.ImageRecordUInt8Iter if option == "uint8" else mxnet.io.ImageRecordIter
    batches = kind(
        path_imgrec=str(path),
        path_imgidx=str(path.with_suffix(".idx")),
        data_shape=(3, serve.SIZE, serve.SIZE),
        batch_size=serve.BATCH_SIZE,
        shuffle=True,
        random_resized_crop=True,
        min_random_area=serve.AREA[0],
        max_random_area=serve.AREA[1],
        min_aspect_ratio=serve.ASPECT[0],
        max_aspect_ratio=serve.ASPECT[1],
        rand_mirror=True,
        preprocess_threads=threads,
        verbose=False,
    )

    def epoch() -> Iterator[Any]:
        batches.reset()
        for batch in batches:
            batch.data[0].wait_to_read()
            yield batch.data[0]

    serve.serve(epoch)


if __name__ == "__main__":
    main()
