"""Giving mapped memory back: the resident set shrinks, the content stays, and no other memory is touched."""

import mmap
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megafuser.conversion.memory_map import release_pages

ROWS, COLUMNS = 2048, 2048
BYTES = ROWS * COLUMNS * 4
# What the kernel maps around a touched page where it has it in its cache.
AROUND = 4 << 20
# What opening may touch: the header, or the pickle.
HEADER = 256 << 10


@pytest.fixture(scope="module")
def original() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def directory(original: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("weights")
    tensors = {"before": torch.ones(7), "weight": original, "zz_after": torch.ones(7)}
    save_file(tensors, directory / "a.safetensors")
    torch.save(tensors, directory / "a.bin")
    return directory


def _from_safetensors(directory: Path) -> torch.Tensor:
    with safe_open(directory / "a.safetensors", framework="pt") as handle:
        return handle.get_tensor("weight")


def _from_pickle(directory: Path) -> torch.Tensor:
    return torch.load(directory / "a.bin", map_location="cpu", mmap=True, weights_only=True)["weight"]


READERS = pytest.mark.parametrize("read", [_from_safetensors, _from_pickle])


def _resident(tensor: torch.Tensor) -> int:
    """Bytes of the mapping around the tensor that are in this process's memory, from /proc/self/smaps."""
    mapping = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            low, high = (int(address, 16) for address in found.groups())
            mapping = low <= tensor.data_ptr() < high
        elif mapping and line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("the tensor lies in no mapping")


@READERS
def test_pages_go_and_the_content_stays(
    read: Callable[[Path], torch.Tensor], directory: Path, original: torch.Tensor
) -> None:
    weight = read(directory)
    assert _resident(weight) <= HEADER, "opening alone must not read the weights"
    assert torch.equal(weight, original)
    assert _resident(weight) >= BYTES
    release_pages(weight)
    assert _resident(weight) <= HEADER
    assert torch.equal(weight, original)


@READERS
def test_row_by_row_never_holds_more_than_the_rows(
    read: Callable[[Path], torch.Tensor], directory: Path, original: torch.Tensor
) -> None:
    weight, step = read(directory), 64
    for start in range(0, ROWS, step):
        rows = weight[start : start + step]
        assert torch.equal(rows, original[start : start + step])
        assert _resident(weight) <= step * COLUMNS * 4 + AROUND
        release_pages(rows)
        assert _resident(weight) <= HEADER, "pages add up"


def test_neighbours_keep_their_pages_and_content(directory: Path, original: torch.Tensor) -> None:
    weight = _from_safetensors(directory)
    weight.sum()
    release_pages(weight[: ROWS // 4])
    assert _resident(weight) >= BYTES // 2
    assert torch.equal(weight, original)


def test_a_small_view_leaves_nothing_behind(directory: Path) -> None:
    weight = _from_pickle(directory)
    weight[5].sum()
    release_pages(weight[5])
    assert _resident(weight) == 0


def test_an_empty_view(directory: Path) -> None:
    release_pages(_from_pickle(directory)[:0])


def test_memory_that_is_no_file_keeps_its_content(original: torch.Tensor) -> None:
    # Views well inside, so that a failure zeroes these tensors and not the memory that the test runs in.
    allocated = original.clone()
    mapped = torch.frombuffer(mmap.mmap(-1, BYTES), dtype=torch.uint8).fill_(7)
    release_pages(mapped[BYTES // 4 : BYTES // 2])
    assert torch.all(mapped == 7)
    release_pages(allocated[ROWS // 4 : ROWS // 2])
    assert torch.equal(allocated, original)


def test_a_file_mapped_for_sharing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.write_bytes(bytes(1 << 20))
    shared = torch.from_file(str(path), shared=True, size=1 << 20, dtype=torch.uint8)
    shared.fill_(7)
    release_pages(shared)
    assert _resident(shared) == 1 << 20
    assert path.read_bytes() == b"\7" * (1 << 20)


def test_only_contiguous_views(directory: Path) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        release_pages(_from_safetensors(directory).T)
