"""Errors a person can act on: each message names the thing, the place and the remedy."""


class EventTensorError(Exception):
    """Base of every error this project raises on purpose; the command line exits with code 2."""


class GraphError(EventTensorError):
    """A graph is malformed: an unknown operand, a map out of range, a wait no task satisfies."""


class CountError(GraphError):
    """An event's wait count differs from the notifies that reach it."""


class CycleError(GraphError):
    """Tasks wait for one another in a circle."""


class RaceError(GraphError):
    """Two tasks touch overlapping regions, one writes, and no chain of events orders them."""


class ScheduleError(EventTensorError):
    """A schedule does not execute its task table: a task lost, repeated or out of order."""


class DeadlockError(EventTensorError):
    """Workers waited for events that never came; the message names task, event and counts."""


class UserError(EventTensorError):
    """Something the user gave cannot be used: a file, an option, a model we do not support."""


class NotFiniteError(EventTensorError):
    """A model's logits were NaN or infinite; the message names the step and the likely cause."""
