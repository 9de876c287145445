"""The whole path on a CPU: data, three specialists, their fusion and a table."""
