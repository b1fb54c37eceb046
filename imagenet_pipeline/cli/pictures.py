"""The group of verbs that draw: picture."""

from __future__ import annotations

import typer

from imagenet_pipeline.cli import pictures_data, pictures_network

picture_app = typer.Typer(help="Pictures of data and of networks.", rich_markup_mode=None)
picture_app.command()(pictures_data.augmentation)
picture_app.command()(pictures_data.classes)
picture_app.command()(pictures_data.sizes)
picture_app.command()(pictures_network.network)
picture_app.command()(pictures_network.filters)
picture_app.command()(pictures_network.activations)
picture_app.command()(pictures_network.grad_cam)
