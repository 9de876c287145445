"""Training and validation files of each domain, built from public data sets by a recipe.

A recipe (`config`) names the sets; their rows become candidates (`candidates`), of which those that are needed are
searched for benchmark items (`leaks`) and near duplicates, and written (`build`) with a report (`report`). A run reads
the files by `data.sources`.
"""
