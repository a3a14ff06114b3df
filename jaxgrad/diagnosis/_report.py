"""What a diagnosis says: the types of a report, and the ways to show, store and reload it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from jaxgrad._checks import message
from jaxgrad.diagnosis._json import decode, encode, same

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from jaxgrad.diagnosis._plots import ReportFigures

Verdict = Literal["healthy", "vanishing", "exploding", "nonfinite", "dead", "ill-conditioned"]
Level = Literal["quick", "standard", "full"]
Source = Literal["weights", "activation", "normalization", "residual", "attention", "other"]

_FORMAT = "jaxgrad.report"
_SCHEMA = 2


class Finding(NamedTuple):
    """One thing that is wrong, and what shows it.

    Attributes:
      symptom: What is seen: one of the verdicts other than ``"healthy"``.
      layer: Name of the layer to blame, or of the block where no single layer is; ``None`` for the whole network.
      cause: One of the documented causes (``"initialization"``, ``"saturating-activation"``, ``"depth"``, ...).
      evidence: The measured numbers, as one or more sentences.
      confidence: Between 0 and 1.
      share: Part of the symptom that this cause accounts for, between 0 and 1: of the log of the total gain where the
        symptom is one of the backward signal; ``None`` where there is nothing to share out.
    """

    symptom: str
    layer: str | None
    cause: str
    evidence: str
    confidence: float
    share: float | None = None


class Remedy(NamedTuple):
    """One fix, tried as a counterfactual on the user's own network and batch.

    Attributes:
      kind: What is changed: ``"reinitialize"``, ``"swap-activation"``, ``"scale-branch"``, ...; two of them, joined by
        ``" + "``, where no single one suffices.
      change: The change in words, and the line to write for the framework the model is of, between backquotes.
      before: log10 of the backward signal's total gain over the network, before.
      after: The same, measured again with the change in place.
      verified: Whether the network measured with the change in place is healthy, and its gain, the last layer aside,
        well within bounds: between 0.1 and 10 over a depth, 0.0001 and 1000 over time.
      confirmed: ``None`` until a short training run says yes or no.
      losses_before: Loss at each step of that run without the change; empty without a run.
      losses_after: Loss at each step with the change.
    """

    kind: str
    change: str
    before: float
    after: float
    verified: bool
    confirmed: bool | None = None
    losses_before: tuple[float, ...] = ()
    losses_after: tuple[float, ...] = ()


class Contribution(NamedTuple):
    """What one part of a block does to the backward signal.

    Attributes:
      block: Index in ``Report.blocks``.
      source: ``"weights"`` (layers, and the scales and biases beside them), ``"activation"`` (the slope of the
        nonlinearities), ``"normalization"``, ``"residual"`` (where a path around the layers joins or leaves),
        ``"attention"`` (the products of activations with one another, and the softmax between them), or ``"other"``
        (pooling, dropout, gates, and what joins a loop from outside at each step).
      log10_gain: log10 of the factor by which it changes the norm of the signal. Over a block's contributions they
        add up to the block's ``log10_gain``.
    """

    block: int
    source: Source
    log10_gain: float


class Histogram(NamedTuple):
    """Counts of values in equal bins.

    Attributes:
      low: Left edge of the first bin.
      high: Right edge of the last bin.
      counts: How many finite values fell in each bin.
    """

    low: float
    high: float
    counts: tuple[int, ...]


class LayerStatistics(NamedTuple):
    """What was measured at one layer.

    Attributes:
      name: The user's own parameter path.
      operation: The primitive that multiplies activation and parameter, such as ``"dot_general"``.
      weight_shape: Shape of the parameter as it enters the operation.
      block: Index in ``Report.blocks`` of the block that holds the layer, or ``None`` off the trunk.
      activation: Name of the nonlinearity that follows, or ``None``.
      activation_mean: Mean of that nonlinearity's output (of the layer's output where there is none).
      activation_std: Its standard deviation.
      saturated_fraction: Share of entries where the nonlinearity's slope is below 5 % of the largest slope it has.
      dead_fraction: Share of units whose slope is exactly 0 on every example of the batch.
      histogram: Histogram of the nonlinearity's output.
      parameter_norm: Euclidean norm of the parameter.
      gradient_norm: Euclidean norm of the loss's gradient with respect to it.
      update_ratio: Norm of the optimizer's first update over the parameter's norm, or ``None`` without an optimizer.
    """

    name: str
    operation: str
    weight_shape: tuple[int, ...]
    block: int | None
    activation: str | None
    activation_mean: float
    activation_std: float
    saturated_fraction: float | None
    dead_fraction: float | None
    histogram: Histogram | None
    parameter_norm: float
    gradient_norm: float
    update_ratio: float | None


class Spectrum(NamedTuple):
    """Singular values of one block's Jacobian, pooled over the examples measured.

    Attributes:
      num_examples: How many examples were measured (1 where the batch is one state).
      values: Singular values of all examples, descending; empty where only the largest was computed.
      sigma_max: The largest singular value, mean over the examples.
      sigma_min: The smallest, mean over the examples, or ``None`` where not computed.
      mean_square: Mean squared singular value over min(input, output) dimensions.
      stable_rank: Squared Frobenius norm over squared largest singular value, mean over the examples.
      accuracy: Relative accuracy of ``sigma_max``.
      method: ``"dense"`` or ``"matrix-free"``.
    """

    num_examples: int
    values: tuple[float, ...]
    sigma_max: float
    sigma_min: float | None
    mean_square: float
    stable_rank: float
    accuracy: float
    method: str


class BlockStatistics(NamedTuple):
    """What was measured over one block, a stretch of the network between neighbouring cuts.

    Attributes:
      index: Position in ``Report.blocks``.
      name: Name of the block: its layers, or the time step.
      kind: ``"depth"``, or ``"time"`` for a step of a recurrence.
      chain: Blocks of the same chain follow on one another; a new chain starts a new product.
      layers: Names of the layers inside.
      input_shape: Shape of the activation that enters.
      output_shape: Shape of the activation that leaves.
      input_rms: Root mean square of the activation that enters.
      output_rms: Root mean square of the activation that leaves.
      log10_input_signal: log10 of the root mean square of dL/d(input), the loss scaled so that the signal at the
        network's output has norm 1; ``-inf`` for a signal of exactly 0.
      log10_output_signal: The same at the block's output.
      log10_gain: log10 of the ratio of the signals' Euclidean norms, input over output.
      predicted_log10_gain: What mean-field theory predicts for it from the sizes of the block's weights; ``None`` where
        theory cannot read the block, and at level ``"quick"``.
      spectrum: Singular values of the block's Jacobian, or ``None`` where not measured.
      log10_band: Where 95 % of the gains of random blocks of this width lie that keep the signal on average: log10 of
        both ends; ``None`` where no layer sums.
    """

    index: int
    name: str
    kind: str
    chain: int
    layers: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_rms: float
    output_rms: float
    log10_input_signal: float
    log10_output_signal: float
    log10_gain: float
    predicted_log10_gain: float | None
    spectrum: Spectrum | None
    log10_band: tuple[float, float] | None = None


class NonFinite(NamedTuple):
    """Where the first NaN or infinity is made.

    Attributes:
      phase: ``"forward"`` or ``"backward"``.
      operation: The primitive that makes it.
      source: File, line and function in the user's code.
      layer: The layer it belongs to: the last one at or before the operation.
      step: Time step, inside a recurrence.
    """

    phase: str
    operation: str
    source: str
    layer: str | None
    step: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The result of :func:`jaxgrad.explain`.

    Printing it gives a terminal page; a notebook shows it as HTML. Two reports are equal where every field is, and
    NaN counts as equal to NaN, so that a report equals the one reloaded from its JSON.

    Attributes:
      verdict: ``"healthy"``, ``"vanishing"``, ``"exploding"``, ``"nonfinite"``, ``"dead"`` or ``"ill-conditioned"``.
      summary: The verdict in one plain sentence.
      findings: What is wrong, most confident first; empty for a healthy network.
      remedies: What was tried, best first; empty for a healthy network.
      layers: One entry a layer, in order of evaluation.
      blocks: One entry a block, in order of evaluation.
      loss: The loss on the batch given.
      log10_total_gain: log10 of the backward signal's gain over the whole trunk (the most extreme chain).
      nonfinite: Where the first NaN or infinity is made, or ``None``.
      level: How much was measured: ``"quick"``, ``"standard"`` or ``"full"``.
      num_parameters: Number of scalar parameters.
      num_examples: Size of the batch, or 1 where the batch is one state.
      mixes_examples: Whether one example's activations depend on another's (BatchNorm in training).
      notes: What the reader should know about how it was measured.
      versions: Versions of jaxgrad and jax, and the platform.
      blame: The gains taken apart: what each part of each block does to the signal, in the blocks' order. Empty at
        level ``"quick"`` and where values are not finite.
    """

    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    remedies: tuple[Remedy, ...]
    layers: tuple[LayerStatistics, ...]
    blocks: tuple[BlockStatistics, ...]
    loss: float
    log10_total_gain: float
    nonfinite: NonFinite | None
    level: Level
    num_parameters: int
    num_examples: int
    mixes_examples: bool
    notes: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]
    blame: tuple[Contribution, ...] = ()

    def __eq__(self, other: object) -> bool:
        return same(self, other) if isinstance(other, Report) else NotImplemented

    def __hash__(self) -> int:
        # Never over a float: hash(nan) depends on the object, and equal reports must hash alike.
        return hash((self.verdict, self.summary, self.level, self.num_parameters, len(self.layers), len(self.blocks)))

    def __str__(self) -> str:
        from jaxgrad.diagnosis._text import to_text

        return to_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from jaxgrad.diagnosis._text import page

        yield from page(self, options.max_width)

    def _repr_html_(self) -> str:
        from jaxgrad.diagnosis._html import fragment

        return fragment(self)

    def to_json(self, path: str | Path | None = None) -> str:
        """Write the whole report as one JSON document.

        The JSON is strict (RFC 8259) and plain ASCII: numbers that are not finite stand as the strings ``"nan"``,
        ``"inf"`` and ``"-inf"``. Every field has the name it has here; ``"format"`` and ``"schema"`` say what wrote
        it.

        Args:
          path: File to write as well, or ``None`` to write none.

        Returns:
          The document.

        Raises:
          TypeError: If a field holds something that is not a Python number, string or tuple.
        """
        text = json.dumps({"format": _FORMAT, "schema": _SCHEMA, **encode(self)}, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="ascii")
        return text

    @classmethod
    def from_json(cls, text_or_path: str | Path) -> Report:
        """Reload a report that :meth:`to_json` wrote, exactly.

        Args:
          text_or_path: The document itself, or the path of its file. A string that starts with ``{`` or ``[`` is
            taken as a document.

        Returns:
          A report equal to the one that was written.

        Raises:
          ValueError: If the document is not JSON, is not a report, or was written by a newer jaxgrad.
          OSError: If the file cannot be read.
        """
        if isinstance(text_or_path, str) and text_or_path.lstrip()[:1] in ("{", "["):
            text: str | bytes = text_or_path
        else:
            text = Path(text_or_path).read_bytes()
        try:
            document = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise _unreadable(f"text that is not JSON ({error})") from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise _unreadable("JSON that jaxgrad did not write")
        schema = document.get("schema")
        if schema != _SCHEMA:
            newer = isinstance(schema, int) and schema > _SCHEMA
            remedy = "upgrade jaxgrad: a newer one wrote this report." if newer else "write the report again."
            raise _unreadable(f"schema {schema!r}", remedy)
        fields = {name: value for name, value in document.items() if name not in ("format", "schema")}
        try:
            return decode(cls, fields, "report")
        except ValueError as error:
            raise _unreadable(f"a document that does not fit ({error})") from error

    def to_html(self, path: str | Path) -> None:
        """Write the report as one self-contained HTML page, with its pictures, for light and dark screens.

        The page loads nothing from anywhere: no script, no font, no image. It needs no extra dependency.

        Args:
          path: File to write.
        """
        from jaxgrad.diagnosis._html import document

        # A name may hold half of a surrogate pair (a file name that is not UTF-8), which no encoding accepts.
        Path(path).write_text(document(self), encoding="utf-8", errors="replace")

    def plot(self) -> ReportFigures:
        """Draw the report's pictures with matplotlib.

        Returns:
          One :class:`matplotlib.figure.Figure` a field: ``signal``, ``forward``, ``spectra``, ``histograms``, ``blame``
          and ``training``, the last four ``None`` where nothing of the kind was measured. The figures belong to no
          window and to no global state: show them by returning them in a notebook, or call ``savefig``.

        Raises:
          ImportError: If matplotlib is not installed.
        """
        from jaxgrad.diagnosis._plots import figures

        return figures(self)


def _unreadable(got: str, remedy: str = "pass what Report.to_json wrote.") -> ValueError:
    return ValueError(message("Report.from_json", "a report as Report.to_json writes it", got, remedy))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
