"""What this process is in an MXNet cluster: the standard DMLC variables, read and checked.

A scheduler knows everyone, servers add the gradients up, workers train. MXNet itself reads the same variables, and
waits for ever where they are wrong (ps-lite, `src/postoffice.cc`); so they are checked here, before it sees them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from imagenet_pipeline.errors import BadRecipe

ROLES = ("scheduler", "server", "worker")
HOST, PORT, SERVERS, WORKERS = "DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NUM_SERVER", "DMLC_NUM_WORKER"
PATIENCE = "IMAGENET_PIPELINE_JOIN_SECONDS"
"""How long to wait for the others at the start, seconds; 300 where it is not set."""


@dataclass(frozen=True)
class Cluster:
    """A process's place in it. The scheduler is reached at `host`:`port`, its roll call at the port after that."""

    role: str
    host: str
    port: int
    servers: int
    workers: int
    patience_seconds: float

    @property
    def roll_port(self) -> int:
        """Where `roll_call` listens."""
        return self.port + 1


def read_cluster(variables: Mapping[str, str] | None = None) -> Cluster | None:
    """What the DMLC variables say; None where none is set. Raises BadRecipe for a missing or impossible one."""
    found = os.environ if variables is None else variables
    needed = ("DMLC_ROLE", HOST, PORT, SERVERS, WORKERS)
    if not any(name in found for name in needed):
        return None
    missing = [name for name in needed if not found.get(name)]
    if missing:
        advice = "set all of them, or none to train alone"
        raise BadRecipe(f"{', '.join(missing)} not set", where="environment", expected=", ".join(needed), advice=advice)
    role = found["DMLC_ROLE"]
    if role not in ROLES:
        raise BadRecipe("no such role", where="DMLC_ROLE", expected=f"one of {', '.join(ROLES)}", found=repr(role))
    port = _whole(found, PORT, 1, 65534)
    servers, workers = _whole(found, SERVERS, 1, 10_000), _whole(found, WORKERS, 1, 10_000)
    patience = _whole(found, PATIENCE, 1, 10**6) if PATIENCE in found else 300
    return Cluster(role, found[HOST], port, servers, workers, patience)


def require_no_cluster(engine: str) -> None:
    """Raise BadRecipe where DMLC variables are set, which this engine knows nothing of."""
    if read_cluster() is not None:
        advice = "unset them and start it with torchrun, or take engine=gluon"
        raise BadRecipe("DMLC variables are MXNet's", where=f"engine = {engine!r}", advice=advice)


def _whole(variables: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = variables[name]
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not least <= number <= most:
        raise BadRecipe(
            "not a number it can be", where=name, expected=f"a whole number from {least} to {most}", found=repr(text)
        )
    return number
