"""What a reset would do in one of its modes, and what a node has to end before it may be ended, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ResetChoice:
    """
    One mode of a reset and what it would take, end and leave.

    Attributes:
        mode: As the runbook's parameter has it.

        frozen: Queues that no node consumes while it is done.

        ended: Tasks that run and would be ended.

        running_on: Tasks that run and cannot be ended by an order.

        held: Tasks that nodes have taken and not begun.

        unacked: Messages that are delivered and not acknowledged, and would be kept.

        waiting: Messages that wait, and would be kept.

        left: Messages that are unacknowledged, and stay so: who may hold them did not answer.

        nodes: Nodes that would be shut down, if shutdown is asked for.

        canaries: Queues through which a task would be sent afterwards.
    """

    mode: str
    meaning: str
    frozen: int = 0
    ended: int = 0
    running_on: int = 0
    held: int = 0
    unacked: int = 0
    waiting: int = 0
    left: int = 0
    nodes: int = 0
    canaries: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DrainNode:
    """
    One node and what it has to end before its machine may be taken away.

    Attributes:
        running: Tasks that run on it.

        lost: Those of them that would be lost if it were killed: they were acknowledged when they began.

        reserved: Tasks that it has taken and will begin.

        scheduled: Tasks that it keeps for their time; a warm shutdown gives them back.

        longest_s: How long the longest of them has been running.

        alone: Queues that nobody else consumes.
    """

    node: str
    queues: tuple[str, ...] = ()
    running: int = 0
    lost: int = 0
    reserved: int = 0
    scheduled: int = 0
    longest_s: float = 0.0
    alone: tuple[str, ...] = ()
