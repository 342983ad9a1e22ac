"""Steps by true score: from the present network to a better one, a few at a time run on the scoring samples.

The sum of losses of single replacements (:mod:`.search`) is two to five times too small once many are made, and it is wrong about which are
best together. So the sums only propose, and a replacement that turned out to add more counts with that from then on. At each step of the
*descent* the few replacements with the smallest additional loss for what they save are scored on the whole present network, and the best is
made, until the target is reached. Then *exchanges* follow: one site gives back what another takes, as long as the true loss falls. The best
sum is a second start for exchanges.

Greedy steps by measured loss for what is saved are those of latency-aware one-shot pruning (for example Frantar and Alistarh, *ZipLM*, 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .costs import Progress
from .search import TICKS, Front, Option
from .survey import Choice, Survey

TRIED = 9
"""The number of replacements that are scored at each step of the descent."""

EACH = 2
"""The number of these that one site may have."""

EXCHANGES, EXCHANGED = 12, 12
"""The largest number of exchanges that are made, and how many are scored for each."""

LONGER = 3
"""How many times as many are scored before the exchanges end."""

Choices = frozenset[Choice]


@dataclass
class Stepper:
    """Finds sets of choices with a small true loss.

    Attributes:
        survey: All choices.
        score: The true loss of a set of choices.
        progress: Called with (done, total, what).
        scores: The losses that are known.
        rises: What each choice last added to the true loss of a set. Alone most choices lose much less than beside others.
    """

    survey: Survey
    score: Callable[[Choices], float]
    progress: Progress
    scores: dict[Choices, float] = field(default_factory=dict)
    rises: dict[Choice, float] = field(default_factory=dict)

    def loss(self, chosen: Choices) -> float:
        """The true loss; each set is scored once."""
        if not chosen:
            return 0.0
        if chosen not in self.scores:
            self.scores[chosen] = self.score(chosen)
        return self.scores[chosen]

    def reach(self, saving: float, start: Choices = frozenset()) -> Choices | None:
        """The best set that is found whose savings add up to at least this much.

        Args:
            saving: The sum of savings to reach.
            start: A set to go on from; sets without it are not tried, but for exchanges.

        Returns:
            The set, or ``None`` if no set saves as much.
        """
        best = self._sum(saving)
        if best is None:
            return None
        starts = [best]
        steps = self._descend(saving, start)
        if steps is not None:
            starts.append(steps)
        chosen = min(starts, key=self.loss)
        return self._exchange(chosen, saving) if math.isfinite(self.loss(chosen)) else None

    def within(self, loss: float) -> Choices:
        """The set with the largest saving of all that are scored on the way whose true loss is at most this."""
        present: Choices = frozenset()
        while True:
            found = self._step(present, float("inf"))
            if found is None or self.loss(found) > loss:
                # The best step loses too much; go on from another set that was scored, if one that fits saves more.
                fitting = [made for made, lost in self.scores.items() if lost <= loss]
                found = max(fitting, key=saving_of, default=present)
                if saving_of(found) <= saving_of(present):
                    return present
            present = found

    def _expected(self, chosen: Choices) -> float:
        """A sum of losses, to propose sets: each is that of the choice alone, or what it last added, if that was more."""
        ordered = sorted(chosen, key=lambda c: c.key)
        return sum(max(c.loss, self.rises.get(c, c.loss)) for c in ordered)

    def most(self) -> float:
        """The largest sum of savings that there is."""
        return saving_of(self.smallest())

    def smallest(self) -> Choices:
        """The set with the largest sum of savings, up to rounding."""
        total = sum(c.saving for c in self.survey.choices) or 1.0
        points = self._front(total).points()
        return max((self._chosen(p.options) for p in points), key=saving_of, default=frozenset())

    def _front(self, total: float) -> Front:
        options = [
            Option(c.site.span, c.site.closer is not None, int(c.saving / total * TICKS), c.loss)
            for c in self.survey.choices
        ]
        return Front(self.survey.sites.size, options)

    def _chosen(self, options: Iterable[int]) -> Choices:
        return frozenset(self.survey.choices[i] for i in options)

    def _sum(self, saving: float) -> Choices | None:
        """The best sum of losses for a saving; rounding savings down to ticks makes it save at least as much."""
        # The finest ticks in which this saving is the largest that matters.
        point = self._front(saving).at_least(TICKS) if saving > 0 else None
        if point is not None:
            return self._chosen(point.options)
        if saving <= 0:
            return frozenset()
        # Rounding may hide a set that saves just as much as is needed.
        smallest = self.smallest()
        return smallest if saving_of(smallest) >= saving else None

    def _descend(self, saving: float, start: Choices) -> Choices | None:
        present = start
        while (done := saving_of(present)) < saving:
            self.progress(int(1000 * max(done, 0) / saving), 1000, "steps by true score")
            found = self._step(present, saving - done)
            if found is None:
                return None
            present = found
        return present

    def _step(self, present: Choices, needed: float) -> Choices | None:
        """The best single replacement; its saving counts up to what is needed."""
        moves: list[tuple[float, str, Choices]] = []
        each: dict[str, int] = {}
        for choice in self.survey.choices:
            made = _with(present, choice)
            gain = saving_of(made) - saving_of(present)
            if choice in present or gain <= 0:
                continue
            loss = self._expected(made) - self._expected(present)
            moves.append((max(loss, 1e-6) / min(gain, needed), choice.site.name, made))
        moves.sort(key=lambda m: m[0])
        tried: list[Choices] = []
        for _, site, made in moves:
            each[site] = each.get(site, 0) + 1
            if each[site] <= EACH and len(tried) < TRIED:
                tried.append(made)
        base = self.loss(present)

        def rate(made: Choices) -> float:
            gain = min(saving_of(made) - saving_of(present), needed)
            rise = self.loss(made) - base
            (choice,) = made - present
            if math.isfinite(rise):
                self.rises[choice] = rise
            return rise / gain if rise > 0 else rise * gain

        return min(tried, key=rate, default=None)

    def _exchange(self, present: Choices, saving: float) -> Choices:
        """Change two sites at a time, or give back at one, as long as the loss falls."""
        for done in range(EXCHANGES):
            self.progress(done, EXCHANGES, "exchanges")
            moves = self._exchanges(present, saving)
            for start in range(0, EXCHANGED * LONGER, EXCHANGED):
                best = min(moves[start : start + EXCHANGED], key=self.loss, default=present)
                if self.loss(best) < self.loss(present):
                    break
            else:
                break
            present = best
        return present

    def _exchanges(self, present: Choices, saving: float) -> list[Choices]:
        """Sets that differ at up to two sites and save enough, by the sum of their expected losses."""
        relaxed: set[Choices] = set()
        for choice in present:
            without = present - {choice}
            relaxed.add(without)
            relaxed |= {
                _with(without, other)
                for other in self.survey.choices
                if other.site is choice.site and other.saving < choice.saving
            }
        made: dict[Choices, float] = {}
        for less in relaxed:
            for more in (less, *(_with(less, c) for c in self.survey.choices if c not in less)):
                if more != present and saving_of(more) >= saving:
                    made[more] = self._expected(more)
        return sorted(made, key=lambda m: (made[m], sorted(c.key for c in m)))


def saving_of(chosen: Iterable[Choice]) -> float:
    """The sum of savings, in a fixed order: rounding must not depend on that of a set."""
    return sum(c.saving for c in sorted(chosen, key=lambda c: c.key))


def _with(present: Choices, choice: Choice) -> Choices:
    """A set with one more choice, without those that it excludes."""
    return frozenset(c for c in present if not c.site.excludes(choice.site)) | {choice}
