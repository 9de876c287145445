"""Memory-mapped tensors: gives back the memory that reading them took, so that a long conversion stays small.

The files are mapped by `conversion.weight_files`.
"""

import ctypes
import mmap
from bisect import bisect_right
from pathlib import Path

import torch

_MAPS = Path("/proc/self/maps")
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
# Touching one page maps those around it that the kernel has at hand: the largest folio of its page cache.
_AROUND_BYTES = 2 << 20


def release_pages(tensor: torch.Tensor) -> None:
    """Gives the resident pages under a view into a mapped file back to the kernel.

    So are those up to 2 MiB beside it, which the kernel may have mapped along with it; otherwise they would add up over
    the views of a large file. Everything stays valid: what is touched again comes from the file again. What was written
    into such a mapping, which keeps it in memory alone, is lost.

    Memory that is not a private mapping of a file is left as it is: there the kernel would put zeros in its place. The
    kernel's own table is asked each time, since an address can change hands between two calls.

    Args:
        tensor: contiguous, on the CPU.

    Raises:
        ValueError: the tensor is not contiguous, so that the pages between its ends are not its own.
    """
    if not tensor.is_contiguous():
        raise ValueError("release_pages needs a contiguous tensor")
    if not tensor.nbytes or (mapping := _private_file_mapping(tensor.data_ptr(), tensor.nbytes)) is None:
        return
    start = max(mapping.start, _page_of(tensor.data_ptr() - _AROUND_BYTES))
    stop = min(mapping.stop, _page_of(tensor.data_ptr() + tensor.nbytes + _AROUND_BYTES))
    if _LIBC.madvise(start, stop - start, mmap.MADV_DONTNEED):
        raise OSError(ctypes.get_errno(), f"madvise failed on {stop - start} bytes of a mapped file")


def _page_of(address: int) -> int:
    return address // mmap.PAGESIZE * mmap.PAGESIZE


def _private_file_mapping(address: int, size: int) -> range | None:
    """The private mapping of a file that holds all of [address, address + size), if there is one.

    Source: proc_pid_maps(5); its lines are sorted by address.
    """
    lines = _MAPS.read_bytes().splitlines()
    position = bisect_right(lines, address, key=lambda line: int(line.partition(b"-")[0], 16))
    if position == 0:
        return None
    addresses, permissions, _, _, inode, *_ = lines[position - 1].split(maxsplit=5)
    start, stop = (int(end, 16) for end in addresses.split(b"-"))
    private_file = permissions.endswith(b"p") and inode != b"0"
    return range(start, stop) if private_file and address + size <= stop else None
