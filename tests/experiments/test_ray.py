"""A sweep over a Ray cluster of two nodes on this machine leaves the records that a sweep of one process leaves."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments import counted
from variegrad.experiments.records import read_records
from variegrad.experiments.sweep import sweep

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

# In a process of its own: a driver leaves threads, handlers and temporary folders behind.
DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from experiments import counted
from variegrad.experiments.sweep import sweep

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address)
assert sum(node["Alive"] for node in ray.nodes()) == 2
folder, log = map(Path, sys.argv[1:])
nodes = log.with_name("nodes")


def run(group):
    with nodes.open("a") as seen:
        seen.write(ray.get_runtime_context().get_node_id() + "\\n")
    return counted.run(group)


chosen = replace(counted.experiment(), run=run)
found = sweep(chosen, counted.settings_of(log, pause=0.3), folder, jobs=2, cluster="ray")
print("computed", found.computed, "nodes", len(set(nodes.read_text().split())))



def fail(group):
    raise ZeroDivisionError("as it must")


try:
    sweep(replace(chosen, run=fail), counted.settings_of(log), folder.with_name("failing"), jobs=2, cluster="ray")
except RuntimeError as error:
    print(type(error).__name__, error)
ray.shutdown()
cluster.shutdown()
"""


def test_two_nodes_share_the_cells_of_a_sweep(tmp_path):
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "on-ray"), str(tmp_path / "log")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "computed 12 nodes 2" in done.stdout
    assert "RuntimeError a cell failed (counted: number" in done.stdout
    assert "ZeroDivisionError: as it must" in done.stdout
    alone = sweep(counted.experiment(), counted.settings_of(tmp_path / "log", pause=0.3), tmp_path / "alone")
    on_ray = read_records(tmp_path / "on-ray").records
    assert {key: record.values for key, record in on_ray.items()} == {
        key: record.values for key, record in alone.records.items()
    }
