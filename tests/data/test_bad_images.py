"""The list of unreadable images, and the limit on their share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmim.data.bad_images import BadImages
from fastmim.errors import RunError


def named(*numbers: int) -> list[tuple[str, str]]:
    return [(f"photos/{number:04}.jpg", "truncated") for number in numbers]


def test_the_list_is_sorted_and_without_repeats(tmp_path: Path) -> None:
    bad = BadImages(tmp_path, num_images=10_000)
    bad.update([], 256)
    assert not (tmp_path / "bad_images.txt").exists()
    bad.update(named(7, 3), 256)
    bad.update(named(3, 5), 256)
    assert (tmp_path / "bad_images.txt").read_text() == "".join(
        f"photos/{number:04}.jpg\ttruncated\n" for number in (3, 5, 7)
    )
    assert len(bad) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["bad_images.txt"]


# A file name that would retitle the terminal's window, in colours of rich.
HOSTILE = "\x1b]0;owned\x07 [red]a\tb\n\udce9\u202e\x9b.jpg"
ESCAPED = r"\x1b]0;owned\x07 [red]a\tb\n\udce9\u202e\x9b.jpg"


def test_awkward_names_stay_on_one_line_and_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    said: list[str] = []
    bad = BadImages(tmp_path, num_images=10, max_share=0.1, say=said.append)
    with pytest.raises(RunError) as caught:
        bad.update([(HOSTILE, "two\nlines"), ("Å 写真.jpg", "truncated")], 10)
    listed = (tmp_path / "bad_images.txt").read_text(encoding="utf-8")
    assert listed == f"{ESCAPED}\ttwo\\nlines\nÅ 写真.jpg\ttruncated\n"
    assert f"{ESCAPED} (two\\nlines)" in said[0] and f"{ESCAPED} (two\\nlines)" in str(caught.value)
    assert said[0].isprintable() and str(caught.value).isprintable()


def test_a_list_that_is_not_utf_8_is_kept_readable(tmp_path: Path) -> None:
    (tmp_path / "bad_images.txt").write_bytes(b"caf\xe9.jpg\ttruncated\n")
    BadImages(tmp_path, num_images=10_000).update(named(3), 256)
    listed = (tmp_path / "bad_images.txt").read_text(encoding="utf-8")
    assert listed == "caf\\xe9.jpg\ttruncated\nphotos/0003.jpg\ttruncated\n"


def test_lines_from_before_a_resume_are_kept_but_not_counted(tmp_path: Path) -> None:
    BadImages(tmp_path, num_images=10_000).update(named(*range(40)), 256)
    again = BadImages(tmp_path, num_images=10_000)
    again.update(named(*range(20, 60)), 256)
    assert len(again) == 40
    assert len((tmp_path / "bad_images.txt").read_text().splitlines()) == 60


@pytest.mark.parametrize(
    ("num_images", "num_seen", "allowed"),
    [
        (1_000_000, 256, 50),  # 5 % of at least 1000
        (1_000_000, 4000, 200),  # of those seen
        (100, 4000, 5),  # of all there are
    ],
)
def test_too_many_stop_the_run(tmp_path: Path, num_images: int, num_seen: int, allowed: int) -> None:
    bad = BadImages(tmp_path, num_images=num_images)
    bad.update(named(*range(allowed)), num_seen)
    for _ in range(3):  # the same ones again, in later epochs
        bad.update(named(*range(allowed)), 0)
    message = (
        rf"{allowed + 1} of [\d,]+ images \(\d.\d%\) cannot be read, the first is photos/0000.jpg \(truncated\): "
        r"repair or remove those in .*bad_images.txt, or raise --max-bad-share above 0.05"
    )
    with pytest.raises(RunError, match=message):
        bad.update(named(allowed), 0)
    assert len((tmp_path / "bad_images.txt").read_text().splitlines()) == allowed + 1


def test_the_user_sets_the_share(tmp_path: Path) -> None:
    BadImages(tmp_path, num_images=10, max_share=1.0).update(named(*range(10)), 10)
    with pytest.raises(RunError, match="above 0"):
        BadImages(tmp_path, num_images=10, max_share=0.0).update(named(0), 10)
