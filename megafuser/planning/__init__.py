"""`megafuser plan`: memory, operations and time of a configuration from its architecture cards alone.

Arithmetic only: no weights, no process groups, no torch. What is counted and how it was checked: docs/planner.md.
"""
