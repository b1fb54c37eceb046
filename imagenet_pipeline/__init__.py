"""From folders of photos to a trained, evaluated image classifier at ImageNet scale."""

__version__ = "0.1.0"
