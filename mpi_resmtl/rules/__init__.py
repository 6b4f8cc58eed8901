"""Rules: how an agent makes its model from what it hears. Pure functions of arrays, no MPI, no files.

There are three kinds. A *weight* rule sees the neighbourhoods and, a number for each edge, what is held against the
message (`judged_by`): it returns weights a_lk >= 0 that sum to 1 over each neighbourhood. An *aggregate* sees the
messages themselves, those of many agents at once (`Heard`), and returns the models. A *server* sees everyone's model,
graph or no graph: a baseline. A message that is missing or not finite has weight 0 in every rule that is not
`trusting`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from mpi_resmtl.neighbourhoods import Neighbourhoods
from mpi_resmtl.registry import Registry

RULES: Registry[Rule] = Registry("rule", __name__)

Judgement = Literal["loss", "distance", "fresh", "sample", "recent", "median"]
"""What is held against a message, a number an edge:
loss: moving average phi_lk of its loss on the present sample; distance: D_lk of its squared distance from the anchor;
fresh: phi_lk of its loss on a sample that nobody trained on; sample: its loss on the present sample alone; recent: the
mean loss of the present message on the agent's last samples; median: the median of the neighbour's losses in the last
iterations, where a message of more loss than any of one's own in them is taken for missing.
"""

Mixing = Literal["", "nnm", "bucketing"]
"""What is done to messages before a rule sees them: nothing; each becomes the mean of its nearest; random buckets of
them are averaged."""


Share = Annotated[float, Ge(0), Le(1)]
"""A parameter from 0 to 1."""


@dataclass
class NoParameters:
    """No parameters."""


@dataclass(frozen=True)
class Heard:
    """What g agents heard in one iteration: n places for messages, in agent order, one's own included.

    An agent with fewer messages than places has empty places: `present` is False there and the message is 0. All
    messages are finite, though they may be huge.
    """

    messages: np.ndarray
    """(g, n, P) float32 or float64, C-contiguous; an aggregate must not change it."""
    present: np.ndarray
    """(g, n) bool; one's own message always is."""
    whole: bool
    """Whether all places are filled."""
    own: np.ndarray
    """(g,) intp: the place of one's own message."""
    previous: np.ndarray
    """(g, P) theta_k,i-1, the models before this iteration."""
    metropolis: np.ndarray
    """(g, n) float64 W_kl >= 0, 0 in empty places, each row's sum 1: what a missing neighbour has goes to oneself."""
    friend: np.ndarray
    """(g, n) bool: who is normal and of the agent's own true group; for plots only."""
    judged: np.ndarray | None
    """(g, n) float64: what is held against the message, inf in empty places; None where nothing is."""
    distance: np.ndarray | None
    """(g, n) float64 D_lk > 0, the moving average of norm(theta_k,i-1 - m_lk)^2, inf in empty places; for rules that
    ask for it (`Rule.distances`)."""
    judged_previous: np.ndarray | None
    """(g,) float64 loss of `previous` on the present sample, for rules that ask for it (`Rule.compares`)."""
    b: np.ndarray
    """(g,) intp: Byzantine neighbours to stand, already lowered to what the rule can with the messages present."""
    agent: np.ndarray
    """(g,) intp: who the agents are, for random streams."""
    iteration: int
    """From 0."""
    iterations: int
    seed: int
    reported: bool = True
    """Whether the second result will be looked at; if not, None may be returned."""

    @property
    def count(self) -> np.ndarray:
        """(g,) number of messages present."""
        return self.present.sum(axis=1)

    @property
    def intermediate(self) -> np.ndarray:
        """(g, P) psi_k, one's own message."""
        return self.messages[np.arange(len(self.own)), self.own]


@dataclass(frozen=True)
class Rule:
    """A registered rule: it has `weigh(neighbourhoods, judged (E,)) -> (E,)`, `aggregate(heard, options)` or `serve`.

    `aggregate` returns the models (g, P) in the dtype of the messages, and what part each message had in them (g, n)
    float64 or None: weights, where the model is their sum, or the share of a message in a selection.
    """

    name: str
    weigh: Callable[[Neighbourhoods, np.ndarray], np.ndarray] | None
    aggregate: Callable[[Heard, object], tuple[np.ndarray, np.ndarray | None]] | None
    serve: Callable[[np.ndarray, float, object], np.ndarray] | None
    """A server's `serve(models (n, P), step_size, options) -> (n, P)`."""
    judged_by: Judgement | None
    """What is held against each message; None: nothing."""
    parameters: type
    trusting: bool
    """Takes messages that are not finite as they are."""
    reports: Literal["weight", "share"] | None
    """What the second result of an aggregate is."""
    stands: Callable[[int, object], int] | None
    """(n, options) -> the greatest b the rule can stand with n messages, possibly below 0; None: does not use b."""
    compares: bool
    """Whether it needs the loss of one's previous model."""
    distances: bool
    """Whether it needs D_lk beside what it is judged by."""
    symmetric: bool
    """Whether it treats its own message like any other, so that buckets may stand for messages."""
    check: Callable[[int, int, object], None] | None
    """(n, b, options): raises UserError when the rule cannot work on such a neighbourhood, whatever b is lowered to."""

    @property
    def __doc__(self) -> str:
        return (self.weigh or self.aggregate or self.serve).__doc__


def rule(
    name: str,
    judged_by: Judgement | None = None,
    parameters: type = NoParameters,
    trusting: bool = False,
) -> Callable:
    """Decorator: register a function of neighbourhoods and judged messages as the weight rule `name`."""

    def register(weigh: Callable) -> Callable:
        made = Rule(name, weigh, None, None, judged_by, parameters, trusting, "weight", None, False, False, False, None)
        RULES.add(name, made)
        return weigh

    return register


def aggregate(
    name: str,
    reports: Literal["weight", "share"] | None,
    parameters: type = NoParameters,
    judged_by: Judgement | None = None,
    stands: Callable[[int, object], int] | None = None,
    compares: bool = False,
    distances: bool = False,
    symmetric: bool = False,
    check: Callable[[int, int, object], None] | None = None,
) -> Callable:
    """Decorator: register a function of `Heard` and its options as the rule `name`; arguments as in `Rule`."""

    def register(combine: Callable) -> Callable:
        made = Rule(
            name,
            None,
            combine,
            None,
            judged_by,
            parameters,
            False,
            reports,
            stands,
            compares,
            distances,
            symmetric,
            check,
        )
        RULES.add(name, made)
        return combine

    return register


def server(name: str, parameters: type = NoParameters) -> Callable:
    """Decorator: register a function of everyone's models, the step size and its options as the rule `name`."""

    def register(serve: Callable) -> Callable:
        made = Rule(name, None, None, serve, None, parameters, False, None, None, False, False, False, None)
        RULES.add(name, made)
        return serve

    return register
