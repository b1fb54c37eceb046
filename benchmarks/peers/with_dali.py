"""DALI on the CPU: MXNet's records, the crop's part alone decoded; the option `antialias` filters where it shrinks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import serve
from nvidia.dali import fn, pipeline_def, types

QUEUE = 2


def main() -> None:
    path, threads, option = serve.arguments()

    @pipeline_def(batch_size=serve.BATCH_SIZE, num_threads=threads, device_id=None, prefetch_queue_depth=QUEUE)
    def crops() -> Any:
        index = str(path.with_suffix(".idx"))
        data, _ = fn.readers.mxnet(path=[str(path)], index_path=[index], random_shuffle=True, name="records")
        images = fn.decoders.image_random_crop(
            data, device="cpu", output_type=types.RGB, random_area=serve.AREA, random_aspect_ratio=serve.ASPECT
        )
        images = fn.resize(images, size=(serve.SIZE, serve.SIZE), antialias=option == "antialias")
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipeline = crops()
    pipeline.build()
    batches = math.floor(len(serve.extents(path)) / serve.BATCH_SIZE)

    def epoch() -> Iterator[Any]:
        # `run` would leave two batches ready for the epoch after this one: work of one round in another.
        for _ in range(min(QUEUE, batches)):
            pipeline.schedule_run()
        for number in range(batches):
            (images,) = pipeline.share_outputs()
            yield images.as_array()
            pipeline.release_outputs()
            if number + QUEUE < batches:
                pipeline.schedule_run()

    serve.serve(epoch)


if __name__ == "__main__":
    main()
