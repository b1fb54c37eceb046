"""torch's DataLoader, a process for each thread; Pillow decodes and resizes, as behind torchvision's ImageFolder."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import serve
import torch
from PIL import Image
from torch.utils.data import DataLoader


class Crops(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Crops of the records' images, uint8 [224, 224, 3]."""

    def __init__(self, records: Path) -> None:
        self._records = records
        self._places = serve.extents(records)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> torch.Tensor:
        start, stop = self._places[number]
        with self._records.open("rb") as file:
            file.seek(start)
            image = Image.open(io.BytesIO(file.read(stop - start))).convert("RGB")
        left, top, width, height = serve.crop_of(image.width, image.height)
        part = image.crop((left, top, left + width, top + height))
        part = part.resize((serve.SIZE, serve.SIZE), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(part))


def main() -> None:
    path, threads, _ = serve.arguments()
    torch.set_num_threads(1)
    batches = DataLoader(
        Crops(path), serve.BATCH_SIZE, shuffle=True, num_workers=threads, drop_last=True, persistent_workers=True
    )

    def epoch() -> Iterator[Any]:
        for batch in batches:
            yield batch.numpy()

    serve.serve(epoch)


if __name__ == "__main__":
    main()
