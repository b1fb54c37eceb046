"""Our Loader; with the option `whole`, without our crop decoder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import serve

from imagenet_pipeline.loading.loader import Loader
from imagenet_pipeline.records import image
from imagenet_pipeline.records.reader import RecordSet


def main() -> None:
    path, threads, option = serve.arguments()
    if option == "whole":
        image.jpeg_crop = None  # type: ignore[assignment]
    epochs = count()
    with RecordSet.open(path) as records:
        loader = Loader(records, serve.SIZE, serve.BATCH_SIZE, threads)

        def epoch() -> Iterator[object]:
            with loader.training(0, next(epochs)) as batches:
                for batch in batches:
                    yield batch.images

        serve.serve(epoch)


if __name__ == "__main__":
    main()
