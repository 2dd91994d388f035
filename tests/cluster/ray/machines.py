"""A Ray cluster of several machines, all of them on this one: a process of its own, which ends it when told so.

The head has no CPUs, so that replicas go to the others, which have a GPU each, as they say. It says on a line of its
standard output where it is, and ends when its standard input does.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

STORE = 80 << 20


def main(machines: int, cpus: int) -> None:
    small = {"include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        others = [cluster.add_node(num_cpus=cpus, num_gpus=1, **small) for _ in range(machines)]
        told = {
            "address": cluster.address,
            "logs": cluster.head_node.get_logs_dir_path(),
            "raylets": [node.all_processes["raylet"][0].process.pid for node in others],
        }
        print(json.dumps(told), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
