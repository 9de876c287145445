"""Examples of what to do with megafuser, from a first run to an experiment; the README.md of each says how."""
