"""The list of a run's unreadable images, and the limit on their share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from fastmim.errors import RunError
from fastmim.system.files import write_text
from fastmim.system.text import printable

_MIN_SEEN = 1000


class BadImages:
    """Collects what the loader reports, keeps `bad_images.txt` up to date, and stops a run that has too many.

    The file has one line "name<TAB>reason" for each image, sorted; `printable` escapes odd names. Lines from before
    the run was resumed stay but do not count: the files may have been repaired since. `say` receives a line about
    the first unreadable image.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        num_images: int,
        max_share: float = 0.05,
        say: Callable[[str], object] | None = None,
        name: str = "bad_images.txt",
    ) -> None:
        self.path = run_dir / name
        self.num_images = num_images
        self.max_share = max_share
        self.say = say
        self.num_seen = 0
        self._found: dict[str, str] = {}

    def __len__(self) -> int:
        """The number of distinct unreadable images since the run was started or resumed."""
        return len(self._found)

    def update(self, bad: Iterable[tuple[str, str]], num_seen: int) -> None:
        """Add a batch's "bad" list; `num_seen` is the number of images read for the batch.

        Raises:
            RunError: More than `max_share` of the images read so far are bad, where the first 1,000 images (or all
                of a smaller source) count as read from the start.
        """
        self.num_seen += num_seen
        new = {name: reason for name, reason in bad if name not in self._found}
        if not new:
            return
        if self.say and not self._found:
            name, reason = next(iter(new.items()))
            self.say(f"skipped {printable(name)} ({printable(reason)}); all such images are listed in {self.path}")
        self._found |= new
        self._write()
        num_tried = min(self.num_images, max(self.num_seen, _MIN_SEEN))
        if len(self) > self.max_share * num_tried:
            name, reason = next(iter(self._found.items()))
            raise RunError(
                f"{len(self):,} of {num_tried:,} images ({len(self) / num_tried:.1%}) cannot be read, "
                f"the first is {printable(name)} ({printable(reason)}): repair or remove those in {self.path}, "
                f"or raise --max-bad-share above {self.max_share:g}"
            )

    def describe(self) -> str:
        """A summary for the end of a run."""
        return f"skipped {len(self):,} of {self.num_images:,} images as unreadable; they are listed in {self.path}"

    def _write(self) -> None:
        lines = {f"{printable(name)}\t{printable(reason)}" for name, reason in self._found.items()}
        with suppress(FileNotFoundError):
            lines |= set(self.path.read_text(encoding="utf-8", errors="backslashreplace").splitlines())
        write_text(self.path, "".join(f"{line}\n" for line in sorted(lines)))
