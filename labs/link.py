"""A slow network on one machine: a namespace for each worker, joined by a bridge, each way shaped by a token bucket.

Needs root and iproute2. A bucket must hold some milliseconds of its rate, or the rate that is reached falls below it.
"""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

BURST_SECONDS = 0.004
SUBNET = "10.77.0"
DEVICE = "eth0"


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def not_here():
    """Why there can be no such network here; None where there can."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"needs iproute2 (the command {tool})"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    try:
        with Link():
            pass
    except RuntimeError as error:
        return f"no shaped network can be made here: {error}"
    return None


class Link:
    """Two workers and what is between them; nothing of it is left at the end.

    Attributes:
        namespaces: of the workers.
    """

    def __init__(self, workers=2):
        mark = f"vg{os.getpid() % 10**6}"
        self.bridge = f"{mark}b"
        self.namespaces = [f"{mark}n{i}" for i in range(workers)]
        self.devices = [f"{mark}v{i}" for i in range(workers)]

    def __enter__(self):
        try:
            run("ip", "link", "add", self.bridge, "type", "bridge")
            run("ip", "link", "set", self.bridge, "up")
            for number, (namespace, device) in enumerate(zip(self.namespaces, self.devices, strict=True)):
                run("ip", "netns", "add", namespace)
                run("ip", "link", "add", device, "type", "veth", "peer", "name", DEVICE, "netns", namespace)
                run("ip", "link", "set", device, "master", self.bridge)
                run("ip", "link", "set", device, "up")
                run("ip", "-n", namespace, "addr", "add", f"{self.address(number)}/24", "dev", DEVICE)
                for inside in ("lo", DEVICE):
                    run("ip", "-n", namespace, "link", "set", inside, "up")
            self.shape(10**9)  # and with it: is there a token bucket in this kernel?
            self.shape(None)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for device in (*self.devices, self.bridge):
            with suppress(RuntimeError):
                run("ip", "link", "del", device)
        for namespace in self.namespaces:
            with suppress(RuntimeError):
                run("ip", "netns", "del", namespace)

    def address(self, number):
        return f"{SUBNET}.{number + 1}"

    def shape(self, bits_per_second):
        """Limit each way of each worker's cable; None for no limit."""
        for namespace, device in zip(self.namespaces, self.devices, strict=True):
            for where, name in ((("-n", namespace), DEVICE), ((), device)):
                with suppress(RuntimeError):  # where there is none yet
                    run("tc", *where, "qdisc", "del", "dev", name, "root")
                if bits_per_second is not None:
                    burst = str(burst_bytes(bits_per_second))
                    run("tc", *where, "qdisc", "add", "dev", name, "root", "tbf", "rate", f"{bits_per_second:.0f}bit",
                        "burst", burst, "latency", "200ms")  # fmt: skip

    def cut(self, number):
        """Pull a worker's cable."""
        run("ip", "link", "set", self.devices[number], "down")

    def heal(self, number):
        """Put it back."""
        run("ip", "link", "set", self.devices[number], "up")

    def sent(self, number):
        """Bytes that a worker's interface has sent so far, headers and acknowledgements included."""
        said = json.loads(run("ip", "-n", self.namespaces[number], "-s", "-j", "link", "show", DEVICE))
        return said[0]["stats64"]["tx"]["bytes"]


def burst_bytes(bits_per_second):
    """What a bucket holds."""
    return max(64_000, int(bits_per_second / 8 * BURST_SECONDS))


def left_behind():
    """Namespaces of this process that still stand."""
    folder = Path("/run/netns")
    return [p.name for p in folder.glob(f"vg{os.getpid() % 10**6}n*")] if folder.is_dir() else []
