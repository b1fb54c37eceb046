"""The shipped recipes, TOML files. In a checkout they lie in config/ at its top.

The wheel has that folder in this one's place (setup.cfg, package_dir); `config/shipped.py` reads them.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "config")]
