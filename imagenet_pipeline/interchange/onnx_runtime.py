"""ONNX Runtime: an exported network that scores images as an engine does, without MXNet and PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imagenet_pipeline import files
from imagenet_pipeline.engines import Images
from imagenet_pipeline.errors import BadInput, BadRecipe, OutOfRoom, counted, is_out_of_memory
from imagenet_pipeline.interchange.frozen import Normalisation

Pixels = npt.NDArray[np.float32]
INPUT, OUTPUT = "images", "logits"
_ERRORS = 3  # the level of ONNX Runtime's log


def import_runtime() -> Any:
    """The package onnxruntime. Raises BadRecipe where it is not installed."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        advice = "pip install 'imagenet-pipeline[onnxruntime]'"
        raise BadRecipe(f"an ONNX file needs the package onnxruntime ({error})", advice=advice) from error
    return onnxruntime


class OnnxScorer:
    """An ONNX file that scores images, as an engine does: uint8 [n, height, width, channels] to logits [n, classes].

    With a `normalisation` the images are normalised before the network sees them, which an export of --raw needs.
    Raises BadInput for a file that ONNX Runtime cannot open.
    """

    name, precision, device_names = "onnxruntime", "float32", ("cpu",)
    rank, ranks = 0, 1

    def __init__(self, path: Path, normalisation: Normalisation | None = None, threads: int = 0) -> None:
        """`threads` that a network is computed in; 0 leaves their number to ONNX Runtime."""
        runtime = import_runtime()
        options = runtime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = _ERRORS, threads
        with files.regular_file(path):
            pass
        try:
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own have no base
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise BadInput("ONNX Runtime cannot open this file", where=path, found=reason) from error
        self._path, self.normalisation = path, normalisation
        self.versions = {"onnxruntime": str(runtime.__version__)}

    @property
    def notes(self) -> dict[str, Any]:
        """The file's own notes, those in JSON read: of our exports their card's content."""
        return read_notes(self._session.get_modelmeta().custom_metadata_map)

    @property
    def shapes(self) -> dict[str, list[int | str | None]]:
        """The shapes of all that goes in and comes out, by name."""
        return {array.name: list(array.shape) for array in (*self._session.get_inputs(), *self._session.get_outputs())}

    def logits(self, images: Images) -> npt.NDArray[np.float32]:
        """Scores before the softmax. Raises OutOfRoom where memory does not hold the computation."""
        pixels = pixels_of(images, self.normalisation)
        try:
            scores: npt.NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: pixels})[0]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found = f"{counted(len(images), 'image')} at once"
            raise OutOfRoom("out of memory", where=self._path, found=found, advice="free some of it") from error
        return scores

    def issue_logits(self, images: Images) -> Callable[[], npt.NDArray[np.float32]]:
        """Give the logits to who asks for them: ONNX Runtime computes at once."""
        logits = self.logits(images)
        return lambda: logits

    def host_array(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An empty array."""
        return np.empty(shape, dtype)

    def sum_over_ranks(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The same: there is one rank."""
        return numbers


def read_notes(notes: Mapping[str, str]) -> dict[str, Any]:
    """The content of a card out of a model's notes, lists and tables from JSON; what cannot be read is left out."""
    read: dict[str, Any] = dict(notes)
    for key in ("classes", "mean", "std", "input", "crop_fraction"):
        try:
            read[key] = json.loads(notes[key])
        except (KeyError, ValueError, RecursionError):
            read.pop(key, None)
    return read


def pixels_of(images: Images, normalisation: Normalisation | None) -> Pixels:
    """The input of an exported network: float32 [n, channels, height, width], in 0..255 or normalised."""
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32)
    if normalisation is None:
        return np.ascontiguousarray(pixels)
    mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in normalisation)
    normalised: Pixels = (pixels - mean) / std
    return normalised
