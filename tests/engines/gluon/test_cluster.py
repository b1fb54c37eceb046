"""The DMLC variables: what they say, and what is wrong with them."""

from __future__ import annotations

import pytest

from imagenet_pipeline.engines import launch_ranks
from imagenet_pipeline.engines.gluon.cluster import Cluster, read_cluster
from imagenet_pipeline.errors import BadRecipe

GOOD = {
    "DMLC_ROLE": "worker",
    "DMLC_PS_ROOT_URI": "10.0.0.1",
    "DMLC_PS_ROOT_PORT": "9091",
    "DMLC_NUM_SERVER": "1",
    "DMLC_NUM_WORKER": "2",
}


def test_without_variables_there_is_no_cluster() -> None:
    assert read_cluster({"PATH": "/bin", "DMLC_NODE_HOST": "10.0.0.1"}) is None


def test_a_whole_set_is_read() -> None:
    assert read_cluster(GOOD) == Cluster("worker", "10.0.0.1", 9091, 1, 2, 300)
    found = read_cluster({**GOOD, "IMAGENET_PIPELINE_JOIN_SECONDS": "20"})
    assert found is not None
    assert (found.patience_seconds, found.roll_port) == (20, 9092)


@pytest.mark.parametrize("missing", GOOD)
@pytest.mark.parametrize("empty", [True, False])
def test_what_is_missing_is_named(missing: str, empty: bool) -> None:
    variables = {name: value for name, value in GOOD.items() if name != missing} | ({missing: ""} if empty else {})
    with pytest.raises(BadRecipe, match=rf"^environment: {missing} not set; expected DMLC_ROLE, "):
        read_cluster(variables)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DMLC_ROLE", "Worker", "DMLC_ROLE: unknown role; expected one of scheduler, server, worker; found 'Worker'"),
        ("DMLC_PS_ROOT_PORT", "65535", "a whole number from 1 to 65534; found '65535'"),
        ("DMLC_PS_ROOT_PORT", "9e3", "found '9e3'"),
        ("DMLC_NUM_WORKER", "0", "DMLC_NUM_WORKER: invalid number"),
        ("DMLC_NUM_SERVER", "-1", "DMLC_NUM_SERVER: invalid number"),
        ("DMLC_NUM_SERVER", "²", "DMLC_NUM_SERVER: invalid number"),
    ],
)
def test_what_cannot_be_is_named_with_what_was_found(name: str, value: str, line: str) -> None:
    with pytest.raises(BadRecipe) as caught:
        read_cluster({**GOOD, name: value})
    assert line in str(caught.value)


def test_pytorch_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadRecipe, match=r"^engine = 'pytorch': this engine does not read DMLC variables; unset them"):
        launch_ranks("pytorch", "cpu", [])
    assert launch_ranks("gluon", "cpu:0,1", []) is False
