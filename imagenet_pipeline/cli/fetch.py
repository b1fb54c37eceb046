"""The verb fetch: public weights from the web, the only thing that is ever downloaded here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_pipeline.cli.output import Json, say, say_json

if TYPE_CHECKING:
    from imagenet_pipeline.interchange.public_weights import PublicWeights


def fetch(
    name: Annotated[str | None, typer.Argument(help="What to download [default: list what there is]")] = None,
    out: Annotated[Path, typer.Option(help="Folder to put it in.")] = Path("output/weights"),
    as_json: Json = False,
) -> None:
    """Download public weights, of a short list; without a NAME print the list.

    Nothing else here downloads anything. A broken download goes on where it stopped
    (NAME.part), and the file gets its name once size and SHA-256 are right. Proxies are those of the environment
    (https_proxy, no_proxy).

    \b
    Examples:
      imagenet-pipeline fetch
      imagenet-pipeline fetch resnet50
      imagenet-pipeline import --torchvision output/weights/resnet50-11ad3fa6.pth --out output/runs/resnet50
    """
    from imagenet_pipeline import files
    from imagenet_pipeline.interchange.fetch import fetch as download
    from imagenet_pipeline.interchange.fetch import weights_called

    if name is None:
        _list_weights(as_json)
        return
    entry = weights_called(name)
    path = download(entry, out)
    digest = files.sha256_of(path)
    if as_json:
        say_json({**_row(entry), "file": path, "sha256": digest})
        return
    checked = "all of it" if entry.is_digest_whole else f"whose first {len(entry.digest)} digits are known"
    say(f"{path}  {path.stat().st_size:,} bytes  sha256 {digest} ({checked})")
    say(f"licence: {entry.licence}")
    say(f"imagenet-pipeline import --torchvision {path} --out output/runs/{entry.name}")


def _list_weights(as_json: bool) -> None:
    from imagenet_pipeline.interchange.public_weights import LICENCE, PUBLIC_WEIGHTS, SOURCE

    if as_json:
        say_json({"weights": [_row(entry) for entry in PUBLIC_WEIGHTS]})
        return
    say(f"{'name':24} {'network':18} {'MiB':>6}  {'rank-1':>6}  {'rank-5':>6}  SHA-256")
    for entry in PUBLIC_WEIGHTS:
        digest = "whole" if entry.is_digest_whole else f"first {len(entry.digest)} digits"
        figures = f"{entry.mib:6.1f}  {entry.rank1:6.2f}  {entry.rank5:6.2f}"
        say(f"{entry.name:24} {entry.network:18} {figures}  {digest}")
    say(f"percent on ImageNet's validation images, as {SOURCE} states them; licence: {LICENCE}")


def _row(entry: PublicWeights) -> dict[str, object]:
    return {
        "name": entry.name, "network": entry.network, "url": entry.url, "digest": entry.digest, "mib": entry.mib,
        "size_bytes": entry.size_bytes, "rank1": entry.rank1, "rank5": entry.rank5,
        "crop_fraction": entry.crop_fraction, "licence": entry.licence, "source": entry.source,
    }  # fmt: skip
