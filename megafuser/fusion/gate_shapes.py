"""The gate's parameters by name and shape, without torch, so that plans, disks and exports can ask.

The gate itself is `fusion.gate`.
"""

from collections.abc import Sequence


def gate_shapes(hidden_sizes: Sequence[int], units: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `megafuser.fusion.gate.Gate`'s parameters, in the order in which the module lists them.

    Args:
        hidden_sizes: h of each specialist, in order; where they differ, each has a projection, `project.K.weight`.
        units: width of the MLP, `gate.hidden_size` of the configuration.
    """
    width = max(hidden_sizes)
    shapes: dict[str, tuple[int, ...]] = {
        "fc1.weight": (units, width),
        "fc1.bias": (units,),
        "fc2.weight": (1, units),
        "fc2.bias": (1,),
    }
    if len(set(hidden_sizes)) > 1:
        shapes |= {f"project.{index}.weight": (width, h) for index, h in enumerate(hidden_sizes)}
    return shapes
