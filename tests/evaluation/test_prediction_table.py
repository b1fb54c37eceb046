"""The table of predictions: read back by Python's own reader, whatever is in the names."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from imagenet_pipeline.evaluation.predict import Choice, Prediction, prediction_table


def test_it_reads_back(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(b"a,\xff\n.jpg"))
    with prediction_table(tmp_path / "t.csv", 2) as table:
        table.add(Prediction(Path("x.jpg"), (Choice("n1", 'tabby, "cat"', 0.5), Choice("n2", "犬", 0.25))))
        table.add(Prediction(odd, (), "empty file"))
        assert not (tmp_path / "t.csv").exists()
    text = (tmp_path / "t.csv").read_text(encoding="utf-8", errors="surrogateescape")
    header, first, second = csv.reader(text.splitlines(keepends=True))
    assert header[:5] == ["file", "unreadable", "class_1", "name_1", "probability_1"]
    assert first == ["x.jpg", "", "n1", 'tabby, "cat"', "0.500000", "n2", "犬", "0.250000"]
    assert second == [str(odd), "empty file", *[""] * 6]  # as many columns in every row
