"""A benchmark's side as a process: how long it took, and how much memory it and its children had at once."""

import subprocess
import threading
import time
from collections.abc import Sequence

import psutil


def measured(command: Sequence[str]) -> tuple[str, dict[str, float]]:
    """Runs a command to its end.

    Returns:
        What it printed; and `seconds`, from its start, and `mib`, the peak of it and of its children together.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                # Private memory: pages of mapped files and of shared libraries would count more than once.
                family = [root, *root.children(recursive=True)]
                peak = max(peak, sum(member.memory_full_info().uss for member in family))
            except psutil.Error:
                pass
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output = process.communicate()[0]
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return output, {"seconds": seconds, "mib": peak / 2**20}
