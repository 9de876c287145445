"""How files are dealt to ranks that read them; what is found of damage is tests/parallel/test_damage.py's."""

from megafuser.checkpoint.damage import deal


def test_shares_are_of_about_the_same_size() -> None:
    sizes = {(index, f"{name}"): size for index in (0, 1) for name, size in (("a", 5), ("b", 3), ("c", 2), ("d", 0))}
    shares = deal(sizes, 2)
    assert sorted(file for share in shares for file in share) == sorted(sizes)
    assert [sum(sizes[file] for file in share) for share in shares] == [10, 10]
    assert deal(dict(reversed(sizes.items())), 2) == shares, "the same on every rank"


def test_more_ranks_than_files() -> None:
    assert deal({(0, "a"): 1, (0, "b"): 1}, 3) == [[(0, "a")], [(0, "b")], []]
