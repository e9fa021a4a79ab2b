"""Validation during a training on labels: answers, scores, pictures, the best weights so far, a summary in words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source
from fastmim.errors import RunError
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory
from fastmim.training.world import ALONE, World

NUM_NAMED = 5
"""Classes that a summary names."""


class Answered(Protocol):
    """What a network said about some validation images; it travels between processes."""

    bad: list[tuple[str, str]]
    """(name, reason) of the unusable ones, which are not scored."""


class Scored(Protocol):
    """How good answers are."""

    def metrics(self) -> dict[str, float]:
        """The numbers for the log."""

    def describe(self) -> str:
        """The most important ones in words."""

    def to_mapping(self) -> dict[str, Any]:
        """All of it, for `evaluation.json`."""


Answers = TypeVar("Answers", bound=Answered)
Scores = TypeVar("Scores", bound=Scored)


@dataclass(kw_only=True)
class Validator(ABC, Generic[Answers, Scores]):
    """Evaluates a network while it is trained, and writes weights files.

    Each process of a run asks its own copy of the network about its share of the images; the main one scores them all.
    """

    metric: str
    """The number, higher is better, by which weights are the best."""
    directory: RunDirectory
    total_steps: int
    about: Mapping[str, Any]
    """Facts for weights files."""
    bad_images: BadImages
    say: Callable[[str], None]
    """Prints a line."""
    num_images: int
    """Images to validate on."""
    world: World = ALONE
    """The processes that share them."""

    def __post_init__(self) -> None:
        before = [line[self.metric] for line in self.directory.read_metrics() if self.metric in line]
        self.best = max(before, default=-1.0)
        """The best so far, earlier starts of the run included; -1 before the first."""

    @abstractmethod
    def answer(self, indices: Sequence[int]) -> Answers:
        """Ask the network, as it is, about some of the validation images, in this order."""

    @abstractmethod
    def score(self, answers: Sequence[Answers]) -> Scores:
        """Compare answers about different images with their labels.

        Raises:
            RunError: they are about none.
        """

    @abstractmethod
    def draw(self, step: int, scores: Scores) -> None:
        """Draw what the scores are about into `samples/`."""

    @abstractmethod
    def save(self, path: Path, step: int, **more: Any) -> None:
        """Write the network as a weights file, with more facts."""

    @abstractmethod
    def summary(self, final: Mapping[str, Any]) -> str:
        """The final scores in plain words."""

    def __call__(self, step: int) -> dict[str, float]:
        """Evaluate, draw, and keep the weights if they are the best; return the metrics, in the main process."""
        with self.world.together():
            mine = self.answer(range(self.world.rank, self.num_images, self.world.size))
        answers = self.world.exchange(mine)
        with self.world.together():
            return self.judge(step, answers) if self.world.main else {}

    def judge(self, step: int, answers: Sequence[Answers]) -> dict[str, float]:
        """Score answers about all images, draw, and keep the weights if they are the best; return the metrics."""
        self.bad_images.update([bad for part in answers for bad in part.bad], num_seen=self.num_images)
        scores = self.score(answers)
        metrics = scores.metrics()
        is_best = metrics[self.metric] > self.best
        self.say(f"step {step}/{self.total_steps}  validation: {scores.describe()}{'  (best)' if is_best else ''}")
        files.write_json(self.directory.evaluation, {"step": step} | scores.to_mapping())
        self.draw(step, scores)
        if is_best:
            self.best = metrics[self.metric]
            self.save_best(step, scores)
        return metrics

    def save_best(self, step: int, scores: Scores) -> None:
        """Write the best weights so far."""
        self.save(self.directory.best_weights, step)

    def last_scores(self, step: int) -> dict[str, Any]:
        """The contents of `evaluation.json` for this step; evaluate again if they are of another, or damaged."""
        path = self.directory.evaluation
        with suppress(RunError, FileNotFoundError):
            if (scores := files.read_json(path)).get("step") == step:
                return scores
        self.judge(step, [self.answer(range(self.num_images))])
        return files.read_json(path)

    def done(self) -> str:
        """The summary's last line: where everything is."""
        best, evaluation = self.directory.best_weights.name, self.directory.evaluation.name
        return f"done: {self.directory.weights} (best: {best}, each class: {evaluation})"


def spread(source: Source, most: int) -> list[int]:
    """The indices of at most so many images, at equal distances."""
    num = min(most, len(source))
    return [number * len(source) // num for number in range(num)]
