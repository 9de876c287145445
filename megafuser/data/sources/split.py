"""Which training samples validate, in domains without validation files: the same ones in every run.

The samples are parted in `data.cache.blocks`, those of a recipe in `data.recipe.build`.
"""

import xxhash

from megafuser.data.sources.samples import Sample


def in_valid(sample: Sample, fraction: float) -> bool:
    """Whether a sample is kept apart for validation.

    Only the first instruction counts, with each run of white space taken for one blank: answers to the same question
    never straddle the split, and neither other samples nor their order change where one goes.

    Args:
        sample: any sample.
        fraction: share of the instructions that validate.
    """
    instruction = " ".join(sample.turns[0][0].split())
    return xxhash.xxh3_64_intdigest(instruction.encode()) < fraction * 2**64
