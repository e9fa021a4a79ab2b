"""Fonts by the letters of a text, whatever this machine has installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from fastmim.system import fonts

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


def drawn(text: str) -> bytes:
    """A picture of a text in the font that is found for it."""
    sheet = Image.new("L", (200, 40))
    ImageDraw.Draw(sheet).text((5, 5), text, 255, fonts.font_for(text, 20))
    return sheet.tobytes()


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib brings a font with these letters")
@pytest.mark.parametrize("text", ["Ausschuß – gut", "żółć", "брак", "جيد", "טוב"])
def test_most_alphabets_have_a_font(text: str) -> None:
    """Each letter looks like itself, not like the box of a character that a font lacks."""
    assert fonts.font_for(text, 20) is not None
    letters = {letter for letter in text if not letter.isascii()}
    assert len({drawn(letter) for letter in letters}) == len(letters)


def test_markup_is_text() -> None:
    assert len({drawn("$a_b$"), drawn("a_b"), drawn("ab"), drawn("[b]ab[/b]")}) == 4


def test_a_text_without_a_font_is_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_USUAL", (str(broken), "no-such-font.ttf"))
    monkeypatch.setattr(fonts, "_of_matplotlib", lambda: ())
    assert fonts.font_for("良品", 13) is None
    text, font = fonts.fitting("run 良品", 13)
    assert text == "run \\u826f\\u54c1" and isinstance(font, ImageFont.FreeTypeFont)
    assert fonts.fitting("run", 13)[0] == "run"


def test_a_font_without_the_letters_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pillow's own has no letters beyond ASCII, and would draw boxes."""
    own = tmp_path / "own.ttf"
    own.write_bytes(ImageFont.load_default(10).font_bytes)
    monkeypatch.setattr(fonts, "_USUAL", (str(own),))
    monkeypatch.setattr(fonts, "_of_matplotlib", lambda: ())
    assert fonts.font_for("ß", 13) is None
