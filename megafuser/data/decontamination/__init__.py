"""Benchmark texts inside training samples: benchmarks' files, words and n-grams, the search.

What a recipe needs is imported from here. The benchmark data sets that a recipe names are read by `data.recipe.leaks`.
"""

from megafuser.data.decontamination.benchmarks import read_benchmarks
from megafuser.data.decontamination.ngrams import BenchmarkItem, Hit, NgramIndex

__all__ = ["BenchmarkItem", "Hit", "NgramIndex", "read_benchmarks"]
