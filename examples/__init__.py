"""What to do with megafuser, from a first run to an experiment; each folder has a README.md and a program `run.sh`."""
