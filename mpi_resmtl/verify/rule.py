"""One rule of a result file: what it found, how it weighed, what it sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mpi_resmtl.attacks import ATTACKS
from mpi_resmtl.verify.run import PHASES, TOLERANCE, Problems, risk_bounds

if TYPE_CHECKING:
    from mpi_resmtl.verify.file import ResultFile

_SMALLEST = 1e-290
"""What is held against a message counts as this at least, so that its inverse is finite."""

_AGENTWISE = ("iteration", "agent")
_DIMENSIONS = {
    **dict.fromkeys(("loss", "fresh_loss", "msd", "risk_before", "risk_after"), _AGENTWISE),
    **dict.fromkeys(("byzantine_weight", "true_positives", "false_positives"), ("part_iteration", "agent")),
    **dict.fromkeys(("train_loss", "train_accuracy", "test_loss", "test_accuracy"), ("epoch", "agent")),
    **dict.fromkeys(("regret", "descent"), ("agent",)),
    **dict.fromkeys(("weight", "share", "accumulated"), ("weight_iteration", "edge")),
    "missing": ("part_iteration", "edge"),
    "seconds": ("weight_iteration", "rank", "phase"),
    "model": ("model_iteration", "agent", "parameter"),
    "model_final": ("agent", "parameter"),
    "traffic": ("rank", "quantity"),
}
_PARTS = ("byzantine_weight", "true_positives", "false_positives")
_LOSSES = ("loss", "fresh_loss", "msd", "risk_before", "risk_after", "train_loss", "test_loss")
_ACCURACIES = ("train_accuracy", "test_accuracy")
_MEASURES = {
    "target-localization": ("msd", "risk_before", "risk_after", "fresh_loss"),
    "linear-regression": ("msd", "risk_before", "risk_after", "fresh_loss"),
    "activity-recognition": ("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    "digit-classification": ("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    "recorded": ("fresh_loss",),
}
"""What a study has besides `loss`."""


class RuleOfFile:
    """One rule's group in a file."""

    def __init__(self, file: ResultFile, name: str, number: int, alone: np.ndarray | None):
        """`number` of it in the order in which rules run; `alone` (m,) mean loss or risk of rule none, if known."""
        self._file, self._run, self._name, self._number, self._alone = file, file.run, name, number, alone
        self._use, self._at = file.run.use(name), f"rule/{name}/"
        self._rule = self._use.rule
        self.mean: np.ndarray | None = None
        self.diverged: np.ndarray | None = None
        """(m,) whose last model is not finite."""

    def problems(self) -> Problems:
        """What is wrong, one line each."""
        self._sound = set()
        yield from self._shapes()
        if self._is_unfinished():
            yield f"/rule/{self._name}: the run is not finished: nothing in the last iteration"
            return
        if "model_final" in self._sound:
            yield from self._models()
        for name in (*_LOSSES, *_ACCURACIES):
            if name in self._sound:
                yield from self._measure(name)
        if "accumulated" in self._sound:
            yield from self._accumulated()
        for name in ("weight", "share"):
            if name in self._sound:
                yield from self._weights(name)
        if self._sound >= set(_PARTS):
            yield from self._parts()
        if "missing" in self._sound:
            yield from self._missing()
        yield from self._over_the_run()
        if "seconds" in self._sound:
            yield from self._seconds()
        if "traffic" in self._sound:
            yield from self._traffic()

    def _shapes(self) -> Problems:
        """Which datasets there are, and their shapes; sets those that can be looked into."""
        run, record = self._run, self._run.experiment.record
        wanted = {"loss", "regret", "descent", "model_final", "traffic", *_PARTS, *_MEASURES.get(run.task, ())}
        if record.weights:
            wanted |= {"weight", "seconds"} | ({"share"} if self._rule.reports == "share" else set())
            wanted |= {"accumulated"} if self._rule.judged_by is not None else set()
        wanted |= {"model"} if record.models else set()
        wanted |= {"missing"} if run.deadline else set()
        if getattr(run.experiment.task, "held_back", 0):
            wanted.add("fresh_loss")
        there = set(self._file.h5[self._at])
        for name in sorted(wanted - there):
            yield f"has no /{self._at}{name}"
        for name in sorted(there & _DIMENSIONS.keys()):
            kind = "i" if name == "traffic" else "f"
            itemsize = run.itemsize if name in ("model", "model_final") else 8
            wrong = list(self._file.dataset(self._at + name, _DIMENSIONS[name], kind, itemsize))
            yield from wrong
            if not wrong:
                self._sound.add(name)

    def _is_unfinished(self) -> bool:
        late = [self._read(name, np.s_[-1:]) for name in ("loss", "seconds") if name in self._sound]
        late += [self._read("model_final")] if "model_final" in self._sound else []
        return bool(late) and all(np.isnan(values).all() for values in late)

    def _models(self) -> Problems:
        """The last models, and those recorded on the way; sets `diverged`."""
        run = self._run
        final = self._read("model_final")
        yield from self._silent("model_final", final[None])
        self.diverged = ~np.isfinite(final[run.normal]).all(axis=1)
        if "model" in self._sound:
            # Where these two differ, one of them is damaged.
            self.diverged &= ~np.isfinite(self._read("model", -1)[run.normal]).all(axis=1)
            last = len(run.scales["model_iteration"]) - 1
            for rows, values in self._blocks("model"):
                yield from self._silent("model", values, run.scales["model_iteration"][rows])
                lost = ~np.isfinite(values[:, run.normal]).all(axis=2) & ~self.diverged
                if lost.any():
                    yield f"{self._place('model', lost, rows)}: is not finite, but the last model is"
                if rows.stop > last and not np.array_equal(values[-1], final, equal_nan=True):
                    yield f"/{self._at}model_final is not the last of /{self._at}model"
                yield from self._truth(values, run.scales["model_iteration"][rows])
        else:
            yield from self._truth(final[None], np.array([run.iterations]))

    def _truth(self, models: np.ndarray, iterations: np.ndarray) -> Problems:
        """Squared deviations and risks recorded with models (b, n, P) against these."""
        run, scale = self._run, self._run.scales["iteration"]
        if not run.has_target:
            return
        place = np.searchsorted(scale, iterations)
        there = scale[np.minimum(place, len(scale) - 1)] == iterations
        if not there.any():
            return
        rows = slice(int(place[there][0]), int(place[there][-1]) + 1)
        kept = place[there] - rows.start
        error = (models[there][:, run.normal] - run.target[run.normal]).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squared = (error * error).sum(axis=2)
        if "msd" in self._sound:
            found = self._read("msd", rows)[kept][:, run.normal]
            yield from self._differ("msd", found, squared, iterations[there], "the model says")
        bounds = risk_bounds(run, error)
        if bounds is not None and "risk_after" in self._sound:
            found = self._read("risk_after", rows)[kept][:, run.normal]
            low, high = (bound * (1 + sign * TOLERANCE) for bound, sign in zip(bounds, (-1, 1), strict=True))
            wrong = np.isfinite(low + high) & ~((found >= low) & (found <= high))
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                expected = f"the model says {low[at]:.6g} to {high[at]:.6g}"
                yield f"{self._where('risk_after', iterations[there], at)}: {found[at]:.6g}, {expected}"

    def _measure(self, name: str) -> Problems:
        """NaN for Byzantine agents; finite for normal ones, unless their models are lost from there on; not below 0."""
        run, accuracy = self._run, name in _ACCURACIES
        scale = run.scales[_DIMENSIONS[name][0]]
        lost = np.zeros(len(run.normal), bool)
        for rows, values in self._blocks(name):
            yield from self._silent(name, values, scale[rows])
            found = values[:, run.normal]
            bad = ~np.isfinite(found)
            may = np.zeros_like(lost) if accuracy else self._diverged()
            seen = np.maximum.accumulate(np.concatenate([lost[None], bad]))[1:]
            wrong = (bad & ~may) | (seen & ~bad)
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                why = "is not finite" if bad[at] else "is finite, but was not before"
                yield f"{self._where(name, scale[rows], at)}: {why}"
                return
            lost = seen[-1]
            wrong = (found < 0) | ((found > 1) if accuracy else False)
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                expected = "0 to 1" if accuracy else "a number that is not below 0"
                yield f"{self._where(name, scale[rows], at)}: is {found[at]:.6g}, expected {expected}"
                return
        if not accuracy and (late := self._diverged() & ~lost).any():
            agent = run.normal[np.argmax(late)]
            yield f"/{self._at}model_final of agent {agent} is not finite, but its last {name} is"
        if name == ("risk_after" if "risk_after" in self._sound else "loss") and run.experiment.record.every == 1:
            total = sum(values[:, run.normal].sum(axis=0) for _, values in self._blocks(name))
            self.mean = total / run.iterations

    def _accumulated(self) -> Problems:
        """What is held against messages: finite, not below 0, and with (1 - nu) of what was held before in it."""
        run, name = self._run, "accumulated"
        scale, nu = run.scales["weight_iteration"], run.experiment.rule.forgetting_factor
        decays = self._rule.judged_by in ("loss", "distance", "fresh")
        before, at_before = np.full(len(run.into), run.experiment.rule.initial_accumulated_loss), 0
        for rows, values in self._blocks(name):
            yield from self._silent_edges(name, values, scale[rows])
            found = values[:, run.into]
            wrong = ~(np.isfinite(found) & (found >= 0))
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                yield f"{self._edge(name, scale[rows], at)}: is {found[at]:.6g}, expected a number that is not below 0"
                return
            if decays:
                steps = np.diff(scale[rows], prepend=at_before)
                least = (1.0 - nu) ** steps[:, None] * np.concatenate([before[None], found[:-1]])
                wrong = found < least * (1 - TOLERANCE)
                if wrong.any():
                    at = tuple(np.argwhere(wrong)[0])
                    expected = f"{least[at]:.6g} at least are left of what was held before"
                    yield f"{self._edge(name, scale[rows], at)}: is {found[at]:.6g}, but {expected}"
                    return
                before, at_before = found[-1], scale[rows][-1]

    def _weights(self, name: str) -> Problems:
        """Weights: not below 0, 1 in sum over each neighbourhood, and as the rule says; shares: 0 to 1."""
        run, scale = self._run, self._run.scales["weight_iteration"]
        reports = self._rule.reports == name and self._use.pre != "bucketing"
        for rows, values in self._blocks(name):
            yield from self._silent_edges(name, values, scale[rows])
            found = values[:, run.into]
            wrong = ~((found >= -1e-12) & (found <= 1 + 1e-9)) & ~self._of_diverged() if reports else ~np.isnan(found)
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                expected = "0 to 1" if reports else "NaN, as the rule has none"
                yield f"{self._edge(name, scale[rows], at)}: is {found[at]:.6g}, expected {expected}"
                return
            if not reports or name == "share":
                continue
            total = run.total(found)
            wrong = ~(np.abs(total - 1) <= TOLERANCE) & ~self._diverged()
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                yield f"{self._where(name, scale[rows], at)}: weights sum to {total[at]:.9g}, expected 1"
                return
            wrong = list(self._filter(found, rows, scale[rows]))
            yield from wrong
            if wrong:
                return

    def _filter(self, found: np.ndarray, rows: slice, iterations: np.ndarray) -> Problems:
        """Weights (b, F) against what is held against the messages (eq. 4, 9, 10); of messages that are lost, 0."""
        run, rule = self._run, self._rule.name
        held = None
        if "accumulated" in self._sound:
            held = self._read("accumulated", rows)[:, run.into]
        if rule in ("distance", "loss-unfiltered", "loss", "loss-fresh", "loss-robust"):
            if held is None:
                return
            share = 1.0 / np.maximum(held, _SMALLEST)
            if rule not in ("distance", "loss-unfiltered"):
                share *= held <= held[:, run.own_of]
        elif rule == "average":
            share = np.ones_like(found)
        elif rule == "none":
            share = np.zeros_like(found)
            share[:, run.own] = 1.0
        else:
            return
        wrong = (found > 0) & (share == 0)
        wrong[:, run.own] = False
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            yield f"{self._edge('weight', iterations, at)}: is {found[at]:.6g}, but the filter lets it not pass"
            return
        # A message that is missing or not finite, or whose loss is not, has weight 0 whatever is held against it.
        lost = (found == 0) & (share > 0) & self._may_be_lost()
        share[lost] = 0.0
        alone = run.total(share) == 0
        share[:, run.own] = np.where(alone, 1.0, share[:, run.own])
        share /= run.total(share).repeat(run.size[run.normal], axis=-1)
        if rule == "loss-robust":
            share = np.minimum(share, self._use.options.cap)
            share[:, run.own] = 0.0
            share[:, run.own] = np.maximum(1.0 - run.total(share), 0.0)
        wrong = ~(np.abs(found - share) <= TOLERANCE) & ~self._of_diverged()
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            yield f"{self._edge('weight', iterations, at)}: is {found[at]:.9g}, rule {rule} gives {share[at]:.9g}"

    def _diverged(self) -> np.ndarray:
        """(m,) agents whose last model is not finite: what they make of messages may be anything."""
        return np.zeros(len(self._run.normal), bool) if self.diverged is None else self.diverged

    def _of_diverged(self) -> np.ndarray:
        """(F,) edges into such agents."""
        return self._diverged().repeat(self._run.size[self._run.normal])

    def _may_be_lost(self) -> np.ndarray:
        """(F,) edges whose message may be lost: of attackers or lost models, by a deadline or by its present loss."""
        run = self._run
        lost = run.from_byzantine.copy()
        lost |= np.isin(run.source, run.normal[self._diverged()])
        if self._rule.judged_by == "median" or run.deadline:
            lost |= run.source != run.hearer
        return lost

    def _parts(self) -> Problems:
        """What part Byzantine and like-minded neighbours have, against the weights or shares."""
        run, scale = self._run, self._run.scales["part_iteration"]
        name = "share" if self._rule.reports == "share" else "weight"
        reports = self._rule.reports is not None and self._use.pre != "bucketing"
        counts = {kind: run.total(of.astype(float)) for kind, of in (("b", run.from_byzantine), ("f", run.from_friend))}
        for rows, weight in self._blocks("byzantine_weight"):
            found = {part: self._read(part, rows) for part in _PARTS[1:]} | {"byzantine_weight": weight}
            for part, values in found.items():
                yield from self._silent(part, values, scale[rows])
            if name in self._sound:
                part = self._read(name, rows)[:, run.into]
                with np.errstate(invalid="ignore", divide="ignore"):
                    expected = {
                        "byzantine_weight": run.total(np.where(run.from_byzantine, part, 0.0)),
                        "true_positives": run.total((part == 0) & run.from_byzantine) / counts["b"],
                        "false_positives": run.total((part == 0) & run.from_friend) / counts["f"],
                    }
                unknown = np.isnan(run.total(part))
                for part, values in expected.items():
                    values = np.where(unknown, np.nan, values)
                    wrong = list(self._differ(part, found[part][:, run.normal], values, scale[rows], f"/{name} says"))
                    yield from wrong
                continue
            for part, values in found.items():
                values = values[:, run.normal]
                there = {"true_positives": counts["b"] > 0, "false_positives": counts["f"] > 0}.get(part, True)
                wrong = np.isnan(values) == (reports & np.asarray(there))
                wrong &= ~self._diverged()
                wrong |= (values < 0) | (values > (np.inf if name == "share" else 1 + TOLERANCE))
                if wrong.any():
                    at = tuple(np.argwhere(wrong)[0])
                    yield f"{self._where(part, scale[rows], at)}: is {values[at]:.6g}"
                    return

    def _missing(self) -> Problems:
        """Messages that were late: no more than iterations; all of an agent's where it stood still; without weight."""
        run, name = self._run, "missing"
        scale, before = run.scales["part_iteration"], 0
        weights = self._sound & {"weight"} and self._rule.reports == "weight" and self._use.pre != "bucketing"
        for rows, values in self._blocks(name):
            yield from self._silent_edges(name, values, scale[rows])
            found = values[:, run.into]
            most = np.diff(scale[rows], prepend=before)[:, None]
            before = scale[rows][-1]
            least = found[:, run.own_of]
            wrong = ~((found >= least) & (found >= 0) & (found <= most) & (found == np.floor(found)))
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                expected = f"a whole number from {max(0, least[at]):g} to {most[at[0], 0]}"
                yield f"{self._edge(name, scale[rows], at)}: is {found[at]:g}, expected {expected}"
                return
            if weights:
                heard = self._read("weight", rows)[:, run.into] > 0
                wrong = heard & (found == most) & (run.source != run.hearer)
                if wrong.any():
                    at = tuple(np.argwhere(wrong)[0])
                    yield f"{self._edge('weight', scale[rows], at)}: is above 0, but no message came in time"
                    return

    def _over_the_run(self) -> Problems:
        """Regret and descent against what they are the mean of, where all of that is recorded."""
        run = self._run
        known = "risk_after" in self._sound
        if "descent" in self._sound:
            found = self._read("descent")
            yield from self._silent("descent", found[None])
            found = found[run.normal]
            if known and run.experiment.record.every == 1 and "risk_before" in self._sound:
                count = np.zeros(len(run.normal))
                for rows, after in self._blocks("risk_after"):
                    count += (after <= self._read("risk_before", rows))[:, run.normal].sum(axis=0)
                yield from self._differ("descent", found[None], count[None] / run.iterations, None, "risks say")
            wrong = ~((found >= 0) & (found <= 1)) if known else ~np.isnan(found)
            if wrong.any():
                agent = int(np.argmax(wrong))
                yield f"/{self._at}descent, agent {run.normal[agent]}: is {found[agent]:.6g}"
        if "regret" in self._sound:
            found = self._read("regret")
            yield from self._silent("regret", found[None])
            alone = self.mean if self._rule.name == "none" else self._alone
            if any(run.use(name).rule.name == "none" for name in run.order):
                if self.mean is None or alone is None:
                    return
                scale = np.abs(self.mean) + np.abs(alone)
                with np.errstate(invalid="ignore"):
                    expected = (self.mean - alone)[None]
                yield from self._differ("regret", found[None, run.normal], expected, None, "the means say", scale)
            elif not np.isnan(found).all():
                yield f"/{self._at}regret is there, though there is no rule none"

    def _seconds(self) -> Problems:
        """Not below 0 for the ranks that worked, NaN for those that were not there."""
        run, scale = self._run, self._run.scales["weight_iteration"]
        active = np.zeros(len(scale), np.int64)
        for first, stop, ranks in run.segments(self._number):
            active[(scale > first) & (scale <= stop)] = ranks
        for rows, values in self._blocks("seconds"):
            there = np.arange(run.ranks) < active[rows, None]
            dead = [rank["rank"] for rank in run.lost]
            right = np.where(there[:, :, None], np.isfinite(values) & (values >= 0), np.isnan(values))
            right[:, dead] = True
            if not right.all():
                row, rank, phase = np.argwhere(~right)[0]
                at = f"iteration {scale[rows][row]}, rank {rank}, {PHASES[phase]}"
                yield f"/{self._at}seconds, {at}: is {values[row, rank, phase]:.6g}"
                return

    def _traffic(self) -> Problems:
        """What graph, ranks and parameters imply; of attacks that may say nothing, no more than that."""

        run, found = self._run, self._read("traffic")
        itemsize = run.itemsize or self._file.h5[self._at + "model_final"].dtype.itemsize
        least, most = np.zeros((2, run.ranks, 2), np.int64)
        for first, stop, ranks in run.segments(self._number):
            for total, each in zip((least, most), run.traffic(ranks), strict=True):
                total[:ranks] += (stop - first) * each * (1, run.parameters * itemsize)
        if run.deadline:
            least = np.zeros_like(least)
        elif not ATTACKS[run.experiment.byzantine.attack].omits:
            least = most
        wrong = (found < least) | (found > most)
        if wrong.any():
            rank, kind = np.argwhere(wrong)[0]
            low, high = least[rank, kind], most[rank, kind]
            expected = f"{high}" if low == high else f"{low} to {high}"
            what = ("messages", "bytes")[kind]
            yield f"/{self._at}traffic of rank {rank}: {found[rank, kind]} {what}, graph and ranks imply {expected}"

    def _silent(self, name: str, values: np.ndarray, iterations: np.ndarray | None = None) -> Problems:
        """Byzantine agents hold no result: values (b, n, ...) are NaN there."""
        byzantine = np.flatnonzero(self._run.byzantine)
        there = ~np.isnan(values[:, byzantine])
        there = there.any(axis=tuple(range(2, there.ndim)))
        if there.any():
            row, agent = np.argwhere(there)[0]
            at = "" if iterations is None else f"{self._when(name)} {iterations[row]}, "
            yield f"/{self._at}{name}, {at}agent {byzantine[agent]}: is there, though the agent is Byzantine"

    def _silent_edges(self, name: str, values: np.ndarray, iterations: np.ndarray) -> Problems:
        """Nothing is recorded of edges into Byzantine agents."""
        run = self._run
        edges = np.flatnonzero(run.byzantine[run.edge[:, 1]])
        there = ~np.isnan(values[:, edges])
        if there.any():
            row, edge = np.argwhere(there)[0]
            source, target = run.edge[edges[edge]]
            at = f"iteration {iterations[row]}, edge {source} -> {target}"
            yield f"/{self._at}{name}, {at}: is there, though the target is Byzantine"

    def _differ(
        self,
        name: str,
        found: np.ndarray,
        expected: np.ndarray,
        iterations: np.ndarray | None,
        who: str,
        scale: np.ndarray | float = 0.0,
    ) -> Problems:
        """Where values of normal agents (b, m) are not as expected, to rounding; both may be NaN or overflow."""
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(found - expected) <= TOLERANCE * np.maximum(np.abs(expected), scale) + 1e-300
        same = near | (~np.isfinite(found) & ~np.isfinite(expected))
        if not same.all():
            at = tuple(np.argwhere(~same)[0])
            yield f"{self._where(name, iterations, at)}: is {found[at]:.9g}, {who} {expected[at]:.9g}"

    def _read(self, name: str, some: slice | tuple = ()) -> np.ndarray:
        return self._file.read(self._at + name, some)

    def _blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        return self._file.blocks(self._at + name)

    @staticmethod
    def _when(name: str) -> str:
        return "epoch" if _DIMENSIONS[name][0] == "epoch" else "iteration"

    def _where(self, name: str, iterations: np.ndarray | None, at: tuple) -> str:
        """The place of a value of a normal agent."""
        when = "" if iterations is None else f"{self._when(name)} {iterations[at[0]]}, "
        return f"/{self._at}{name}, {when}agent {self._run.normal[at[1]]}"

    def _place(self, name: str, wrong: np.ndarray, rows: slice) -> str:
        at = tuple(np.argwhere(wrong)[0])
        return self._where(name, self._run.scales[_DIMENSIONS[name][0]][rows], at)

    def _edge(self, name: str, iterations: np.ndarray, at: tuple) -> str:
        """The place of a value of an edge into a normal agent."""
        run, (row, edge) = self._run, at
        return f"/{self._at}{name}, iteration {iterations[row]}, edge {run.source[edge]} -> {run.hearer[edge]}"
