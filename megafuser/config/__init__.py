"""What a run is: the dataclasses of the configuration, reading and writing them, and the names of a run's files.

Nothing here imports torch, so that a bad configuration is refused at once. The configuration of a data recipe is
`data.recipe.config`.
"""
