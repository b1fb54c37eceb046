"""Builders of records: one module a source of images. In a checkout they lie in record_builders/ at its top.

The wheel has that folder in this one's place (setup.cfg, package_dir); the name to import is the same in both.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from record_builders import archived as archived
    from record_builders import ckplus as ckplus
    from record_builders import cutting as cutting
    from record_builders import digits as digits
    from record_builders import fer2013 as fer2013
    from record_builders import folder as folder
    from record_builders import imagenet as imagenet
    from record_builders import listing as listing
    from record_builders import parquet as parquet
    from record_builders import tfrecord as tfrecord
    from record_builders import webdataset as webdataset
else:
    __path__ = [str(Path(__file__).resolve().parents[2] / "record_builders")]
