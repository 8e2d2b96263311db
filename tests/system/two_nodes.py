"""A Ray cluster of two nodes on this machine, in a process of its own until standard input ends.

A second Ray in the process of the tests would not come up beside theirs.
"""

import shutil
import socket
import sys
import tempfile

from ray.cluster_utils import Cluster

CPUS = 3


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


if __name__ == "__main__":
    # Folder and port of its own: another Ray on this machine is left alone. Short, because sockets
    # are in it.
    folder = tempfile.mkdtemp(prefix="ray-")
    node = {"num_cpus": CPUS, "object_store_memory": 80 * 2**20, "temp_dir": folder}
    head = {**node, "include_dashboard": True, "dashboard_port": _free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**node)
    cluster.wait_for_nodes()
    raylet = second.all_processes["raylet"][0].process.pid
    sys.stdout.write(f"ADDRESS {cluster.address} {raylet}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
