"""Numbers and names as words, the same on the terminal, on the page and in the figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxgrad.diagnosis._report import NonFinite, Remedy

_LONG_CODE = 24
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """A measured quantity in few characters; a dash where it was not measured."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if 10**digits <= abs(value) < 1e5:
        return f"{value:.0f}"
    # The zeros at the end stay: they line up a column and say how much was measured.
    mantissa, _, exponent = f"{value:#.{digits}g}".partition("e")
    return f"{mantissa.rstrip('.')}e{int(exponent)}" if exponent else mantissa.rstrip(".")


def percent(fraction: float | None) -> str:
    """A share between 0 and 1; nothing that is not exactly 0 or 1 is rounded to 0 % or 100 %."""
    if fraction is None:
        return "–"
    if math.isnan(fraction):
        return "nan"
    if 0 < fraction < 0.005:
        return "<1%"
    if 0.995 <= fraction < 1:
        return ">99%"
    return f"{100 * fraction:.0f}%"


def log10_number(value: float) -> str:
    """A log10 with one decimal, ``-inf`` for the log of exactly 0."""
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text


def times(log10: float) -> str:
    """The factor whose log10 is given, also where the factor itself leaves the range of a float."""
    if math.isnan(log10):
        return "nan"
    if math.isinf(log10):
        return "×inf" if log10 > 0 else "×0"
    if -3 <= log10 < 4:
        factor = 10.0**log10
        return f"×{factor:.0f}" if factor >= 99.5 else f"×{factor:#.2g}".rstrip(".")
    exponent = math.floor(log10)
    mantissa = f"{10 ** (log10 - exponent):.1f}"
    # 9.96 rounds to 10.0, which belongs to the next power.
    return f"×1.0e{exponent + 1}" if mantissa == "10.0" else f"×{mantissa}e{exponent}"


def signed(log10: float) -> str:
    """A log10 as a step: ``+0.31``, ``−12.5``, ``−∞``."""
    if not math.isfinite(log10):
        return "nan" if math.isnan(log10) else "+∞" if log10 > 0 else "−∞"
    text = f"{log10:+.2f}" if abs(log10) < 0.995 else f"{log10:+.1f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """The factors between two log10: ``0.97–1.03``."""
    return f"{times(low)[1:]}–{times(high)[1:]}"


def power(exponent: float) -> str:
    """A power of ten as an axis writes it: ``10⁻¹²``."""
    return "1" if exponent == 0 else f"10{f'{exponent:g}'.translate(_SUPERSCRIPT)}"


def shape(dimensions: tuple[int, ...]) -> str:
    """A shape as ``128×64``, or ``scalar``."""
    return "×".join(map(str, dimensions)) or "scalar"


def count(amount: int, noun: str) -> str:
    """``1 layer``, ``30 layers``, ``1,797 examples``."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def printable(text: str) -> str:
    """The text with control characters spelled out, so that a name cannot move the cursor or colour the page."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text)


def shared_affixes(names: Sequence[str]) -> tuple[str, str]:
    """What every name starts and ends with, in whole path segments.

    Args:
      names: Parameter paths such as ``"params/Dense_0/kernel"``.

    Returns:
      The shared head up to and with its last slash and the shared tail from its first slash on; both empty for fewer
      than two different names. Something is left of every name without them.
    """
    parts = [name.split("/") for name in dict.fromkeys(names)]
    if len(parts) < 2:
        return "", ""
    room = min(map(len, parts)) - 1
    head = _num_shared(parts, room)
    tail = _num_shared([part[::-1] for part in parts], room - head)
    first = parts[0]
    return "".join(f"{part}/" for part in first[:head]), "".join(f"/{part}" for part in first[len(first) - tail :])


def _num_shared(parts: Sequence[Sequence[str]], most: int) -> int:
    return next((i for i in range(most) if len({part[i] for part in parts}) > 1), most)


def elide(text: str, width: int) -> str:
    """Cut the middle out of a text that is too wide, keeping more of its end, where names differ."""
    if len(text) <= width:
        return text
    head = max((width - 1) // 3, 0)
    tail = max(width - 1 - head, 0)
    return f"{text[:head]}…{text[len(text) - tail :]}"[:width]


def likelihood(confidence: float) -> str:
    """A confidence in words: percentages are left to shares, as two kinds of them beside each other confuse."""
    for least, words in ((0.95, "almost certain"), (0.8, "very likely"), (0.5, "likely"), (0.0, "possible")):
        if confidence >= least:
            return words
    return "uncertain"


class Change(NamedTuple):
    """A change with its code taken out of the words.

    Attributes:
      words: Pairs of a piece of the sentence and whether it is code.
      lines: Code that has a line of its own.
    """

    words: tuple[tuple[str, bool], ...]
    lines: tuple[str, ...]

    def sentence(self) -> str:
        """The words alone, without the colon that announced the code."""
        return "".join(piece for piece, _ in self.words).rstrip(": ")


def words_and_code(change: str) -> Change:
    """Take the code out of a change.

    Args:
      change: Words, with code between backquotes.

    Returns:
      The words, with short code among them; code after a colon, and long code, has a line of its own. A backquote
      without its partner is a character like any other.
    """
    pieces = change.split("`")
    if len(pieces) % 2 == 0:
        pieces[-2:] = ["`".join(pieces[-2:])]
    words: list[tuple[str, bool]] = []
    lines: list[str] = []
    for i, piece in enumerate(pieces):
        if not piece.strip():
            continue
        announced = bool(words) and words[-1][0].rstrip().endswith(":")
        if i % 2 and words and (announced or len(piece) > _LONG_CODE):
            lines.append(piece.strip())
            words[-1] = (words[-1][0].rstrip(), words[-1][1])
        elif i % 2 == 0 and lines and words:
            # The sentence goes on after the code, which now stands below it.
            words[-1] = (words[-1][0].rstrip(": "), words[-1][1])
            words.append((piece, False))
        else:
            words.append((piece, bool(i % 2)))
    return Change(tuple(words), tuple(lines))


def outcome(remedy: Remedy) -> str:
    """What became of a remedy, in words."""
    if not remedy.verified:
        if remedy.confirmed:
            return "helps in training, though the gain is not healthy"
        return "helped, but not enough" if _nearer(remedy) else "did not help"
    if remedy.confirmed is None:
        return "verified"
    return "verified, and training confirms it" if remedy.confirmed else "verified, but training does not confirm it"


class Advice(NamedTuple):
    """The remedies by what the reader shall do with them.

    Attributes:
      best: The one to take, or ``None`` where nothing helped.
      others: Those that make the network healthy too, or were trained with.
      partial: Those that helped, but not enough.
      useless: Those that did not help.
    """

    best: Remedy | None
    others: tuple[Remedy, ...]
    partial: tuple[Remedy, ...]
    useless: tuple[Remedy, ...]


def advise(remedies: Sequence[Remedy]) -> Advice:
    """Sort out the remedies. The first is verified where one is, and none that training speaks against."""
    helpful = [remedy for remedy in remedies if remedy.verified or remedy.confirmed or _nearer(remedy)]
    useless = tuple(remedy for remedy in remedies if remedy not in helpful)
    if not helpful:
        return Advice(None, (), (), useless)
    best = helpful.pop(
        min(range(len(helpful)), key=lambda i: (helpful[i].confirmed is False, not helpful[i].verified, i))
    )
    whole = [remedy.verified or remedy.confirmed is not None for remedy in helpful]
    others = tuple(itertools.compress(helpful, whole))
    partial = tuple(itertools.compress(helpful, (not is_whole for is_whole in whole)))
    return Advice(best, others, partial, useless)


def has_gains(remedy: Remedy) -> bool:
    """Whether a remedy's gains say anything: not where the signal was and stays as it should be, or is unknown."""
    near_one = max(abs(remedy.before), abs(remedy.after)) < 0.5
    return not (near_one or math.isnan(remedy.before) or math.isnan(remedy.after))


def _nearer(remedy: Remedy) -> bool:
    return math.isfinite(remedy.after) and abs(remedy.after) <= abs(remedy.before) - 1


def place_of_nonfinite(made: NonFinite) -> str:
    """Where the first NaN or infinity is made, in words."""
    layer = f", in or after {made.layer}" if made.layer is not None else ""
    step = f", at time step {made.step}" if made.step is not None else ""
    return f"made in the {made.phase} pass by {made.operation} at {made.source}{layer}{step}"
