"""Attacks by messages that are, or were, honest: of a falsely taught or another agent, left out, late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from mpi_resmtl.attacks import Known, Laid, Messages, Remembered, Stage, attack
from mpi_resmtl.attacks.common import (
    Over,
    Surroundings,
    begins,
    by_set,
    centred,
    drawn,
    finite,
    own,
    shared_surroundings,
    surroundings,
)
from mpi_resmtl.errors import UserError
from mpi_resmtl.streams import Stream


@dataclass
class LabelFlip:
    """No parameters."""


@attack("label-flip", LabelFlip, knows="own", mislabels=True)
def label_flip(parameters: LabelFlip, stage: Stage) -> Messages:
    """The attacker's own intermediate, trained honestly and alone on labels C-1-y."""
    return finite(own(stage))


@dataclass
class Mimic:
    """Whom to copy."""

    agent: Annotated[int | None, Ge(0), "the normal agent to copy; none given: the farthest one, see `over`"] = None
    over: Over = "neighbourhood"


@attack("mimic", Mimic, knows="all")
def mimic(parameters: Mimic, stage: Stage) -> Messages:
    """Copy of one normal agent, given or else the farthest (Karimireddy, He, Jaggi 2022).

    The farthest is, in the neighbourhood, the normal agent whose intermediate is farthest from the victim's, which is
    one of another task where there is one; over all, the one farthest from the mean of all normal agents, the same for
    every victim. Of several as far, the lowest number.
    """
    chosen = parameters.agent
    if chosen is not None:
        if chosen >= stage.agents or stage.byzantine[chosen]:
            what = "Byzantine itself" if chosen < stage.agents else f"not an agent; there are 0 to {stage.agents - 1}"
            raise UserError(f"attack mimic: byzantine.agent = {chosen}: agent {chosen} is {what}")
        copied = np.full(len(stage.source), chosen)
        return finite(lambda known: known.intermediate.take(copied, axis=0))
    over_all = parameters.over == "all"
    around = shared_surroundings(stage, "all") if over_all else surroundings(stage)

    def build(part: Surroundings):
        def farthest(known: Known) -> np.ndarray:
            if over_all:
                _, difference = centred(part, known.intermediate)
            else:
                difference = known.intermediate.take(part.member, axis=0)
                difference -= known.intermediate.take(part.victim, axis=0)
            difference *= difference
            squared = np.where(part.present, difference.sum(axis=-1), -1.0)
            agent = part.member[squared.argmax(axis=0), np.arange(len(part.victim))]
            return known.intermediate.take(agent, axis=0)

        return farthest

    farthest = by_set(stage, around, build)
    return finite(lambda known: farthest(known).take(around.of_edge, axis=0))


@dataclass
class Silent:
    """How often."""

    probability: Annotated[float, Ge(0), Le(1), "chance that a message is not sent, for each edge and iteration"] = 0.5


@attack("silent", Silent, knows="own", omits=True)
def silent(parameters: Silent, stage: Stage) -> Messages:
    """The attacker's own intermediate, or with probability p nothing: crash and omission faults."""
    model = own(stage)
    stream = Stream(stage.seed, "silence", stage.total, 1, stage.first, len(stage.source))
    chance = drawn(stream.uniform, stream.length)
    return lambda known: (model(known), chance(known.iteration)[:, 0] >= parameters.probability)


@dataclass
class Stale:
    """How late."""

    delay: Annotated[int, Ge(1), "s, iterations"] = 10


@attack("stale", Stale, knows="own", omits=True)
def stale(parameters: Stale, stage: Stage) -> Messages:
    """The attacker's own intermediate of s iterations ago; nothing in the first s iterations."""
    attacker, of_edge = np.unique(stage.source, return_inverse=True)
    state = Remembered(past=Laid(axis=1, of_edge=of_edge, places=len(attacker)))

    def messages(known: Known) -> tuple[np.ndarray, np.ndarray]:
        if begins(state, known):
            state["first"] = np.array(known.iteration)
            state["past"] = np.zeros((parameters.delay, len(attacker), stage.parameters), stage.dtype)
        place = known.iteration % parameters.delay
        message = state["past"][place].take(of_edge, axis=0)
        state["past"][place] = known.own
        return message, np.full(len(of_edge), known.iteration - state["first"] >= parameters.delay)

    messages.state = state
    return messages
