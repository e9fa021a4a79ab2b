"""Validation during a training on labels: scores, pictures, the best weights so far, a summary in words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fastmim.data.bad_images import BadImages
from fastmim.data.sources import Source
from fastmim.errors import RunError
from fastmim.system import files
from fastmim.system.run_directory import RunDirectory

NUM_NAMED = 5
"""Classes that a summary names."""


class Scored(Protocol):
    """What an evaluation found."""

    def metrics(self) -> dict[str, float]:
        """The numbers for the log."""

    def describe(self) -> str:
        """The most important ones in words."""

    def to_mapping(self) -> dict[str, Any]:
        """All of it, for `evaluation.json`."""


Scores = TypeVar("Scores", bound=Scored)


@dataclass(kw_only=True)
class Validator(ABC, Generic[Scores]):
    """Evaluates a network while it is trained, and writes weights files."""

    metric: str
    """The number, higher is better, by which weights are the best."""
    directory: RunDirectory
    total_steps: int
    about: Mapping[str, Any]
    """Facts for weights files."""
    bad_images: BadImages
    say: Callable[[str], None]
    """Prints a line."""

    def __post_init__(self) -> None:
        before = [line[self.metric] for line in self.directory.read_metrics() if self.metric in line]
        self.best = max(before, default=-1.0)
        """The best so far, earlier starts of the run included; -1 before the first."""

    @abstractmethod
    def evaluate(self) -> Scores:
        """Score the network as it is."""

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
        """Evaluate, draw, and keep the weights if they are the best; return the metrics."""
        scores = self.evaluate()
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

    def found_bad(self, bad: list[tuple[str, str]], num_seen: int) -> None:
        """Count unusable images."""
        self.bad_images.update(bad, num_seen=num_seen)

    def last_scores(self, step: int) -> dict[str, Any]:
        """The contents of `evaluation.json` for this step; evaluate again if they are of another, or damaged."""
        path = self.directory.evaluation
        with suppress(RunError, FileNotFoundError):
            if (scores := files.read_json(path)).get("step") == step:
                return scores
        self(step)
        return files.read_json(path)

    def done(self) -> str:
        """The summary's last line: where everything is."""
        best, evaluation = self.directory.best_weights.name, self.directory.evaluation.name
        return f"done: {self.directory.weights} (best: {best}, each class: {evaluation})"


def spread(source: Source, most: int) -> list[int]:
    """The indices of at most so many images, at equal distances."""
    num = min(most, len(source))
    return [number * len(source) // num for number in range(num)]
