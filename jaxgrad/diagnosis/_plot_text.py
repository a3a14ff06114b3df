"""Text that matplotlib can draw."""

from __future__ import annotations

from jaxgrad.diagnosis._format import elide, printable


def shown(name: str, most: int) -> str:
    """A name that the fonts in use can draw: a character that they lack would warn at every drawing.

    Args:
      name: Any text.
      most: Characters to keep.

    Returns:
      The name, cut in the middle where it is too long, with a question mark for each character that cannot be drawn.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = []
    for family in FontProperties().get_family():
        try:
            # In a list: a single string would be read as a fontconfig pattern.
            fonts.append(get_font(findfont(FontProperties(family=[family]), fallback_to_default=False)))
        except ValueError:
            continue
    text = elide(printable(name), most)
    return "".join(c if any(font.get_char_index(ord(c)) for font in fonts) else "?" for c in text) if fonts else text
