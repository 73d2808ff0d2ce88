"""What a gradient reaches."""

from __future__ import annotations

from torch import Tensor


def trained_by(loss: Tensor) -> set[Tensor]:
    """The leaves of the graph of `loss`: all that its gradient reaches, registered anywhere or not."""
    nodes, seen, leaves = [loss.grad_fn], set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return leaves
