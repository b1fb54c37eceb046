"""A PyTorch module as a program that runs without its Python text: TorchScript, and what torch.export makes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagenet_pipeline import files
from imagenet_pipeline.engines import Values
from imagenet_pipeline.engines.pytorch.runtime import torch
from imagenet_pipeline.errors import BadRecipe
from imagenet_pipeline.networks.shapes import Shape

IMAGES_TRACED = 2
"""Images that a module is traced with; of one torch would take the batch size for fixed."""


def module_of(text: str, values: Values) -> Any:
    """The module that `network()` makes in a text of `interchange.torch_export.module_text`, with values, to score.

    The text is run: it is made of layers' names, all plain words, and of numbers.
    """
    # TorchScript takes the name of a class from that of its file.
    names: dict[str, Any] = {"__name__": "exported", "__file__": "exported.py"}
    exec(text, names)
    module = names["network"]()
    module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in values.items()})
    return module.eval()


def write_program(module: Any, input_shape: Shape, out: Path, ending: str) -> list[Path]:
    """Write `out` with the ending .pt, as `script_bytes` says, or .pt2, as `program_bytes` does. Raises as they do."""
    content = {".pt": script_bytes, ".pt2": program_bytes}[ending](module, input_shape)
    target = out.with_name(f"{out.name}{ending}")
    files.write_whole(target, content)
    return [target]


def script_bytes(module: Any, input_shape: Shape) -> bytes:
    """The module as `torch.jit.load` reads it, traced with images of this shape; any number of them can be scored.

    Raises BadRecipe where torch cannot trace it.
    """

    def write(images: Any, stream: io.BytesIO) -> None:
        torch.jit.save(torch.jit.trace(module, (images,), check_trace=False), stream)

    return _written("torchscript", write, input_shape)


def program_bytes(module: Any, input_shape: Shape) -> bytes:
    """The module as `torch.export.load` reads it, for images of this shape and any number of them.

    Raises BadRecipe where torch cannot export it.
    """

    def write(images: Any, stream: io.BytesIO) -> None:
        program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("n")},))
        program.module()  # fails here and not at the reader's, should a layer be called as torch's own things are
        torch.export.save(program, stream)

    return _written("torch-export", write, input_shape)


def _written(form: str, write: Callable[[Any, io.BytesIO], None], input_shape: Shape) -> bytes:
    stream = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # That TorchScript is not worked on any more, and that a length of the image becomes a constant.
            warnings.simplefilter("ignore")
            write(torch.zeros(IMAGES_TRACED, *input_shape), stream)
    except (AssertionError, RuntimeError, TypeError, ValueError, torch._dynamo.exc.TorchDynamoException) as error:
        reason = str(error).strip().partition("\n")[0]
        what = f"PyTorch {torch.__version__} cannot write this network so ({reason})"
        raise BadRecipe(what, where=f"--format {form}", advice="take --format pytorch or onnx") from error
    return stream.getvalue()
