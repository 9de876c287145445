"""`megafuser generate` from a stage of a run, as its tests give it."""

from pathlib import Path

from megafuser.cli.main import main


def generate(root: Path, stage: str, *arguments: str) -> int:
    # a gibibyte of caches, as without a word, takes long to fill with zeros
    common = ["--checkpoint", str(root / "run" / stage), "--cache-gib", "0.05"]
    return main(["generate", *common, *arguments])
