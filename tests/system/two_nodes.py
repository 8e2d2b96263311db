"""A Ray cluster of two nodes on this machine, in a process of its own until standard input ends.

A second Ray in the process of the tests would not come up beside theirs.
"""

import sys

from ray.cluster_utils import Cluster

CPUS = 3

if __name__ == "__main__":
    node = {"num_cpus": CPUS, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": True})
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    raylet = second.all_processes["raylet"][0].process.pid
    sys.stdout.write(f"ADDRESS {cluster.address} {raylet}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()
