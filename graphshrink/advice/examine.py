"""What each capability could gain: one function for each, on the graph behind the exact passes.

Everything is decided by shapes and by the structure of the graph, as the passes and the planner decide it; only patterns of zeros, and
the weakest channels, are read from weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..ir import (
    Conv,
    ConvTranspose,
    Dequantize,
    DynamicQuantize,
    Graph,
    IntegerMatMul,
    Linear,
    MatMul,
    MissingExtra,
    ModelError,
    Node,
    Pattern,
    Quantize,
    QuantizedConv,
    QuantizedMatMul,
    Rewriter,
    Scale,
)
from ..ir.analysis import channel_groups
from ..ir.analysis.weights import LIKELY_CHANNELS, NmWeight, nm_weights
from ..ir.errors import counted, listed
from ..passes import Context, PassError, PassRecord, Pipeline, Pivot, PruneChannels
from ..passes import Quantize as QuantizePass
from ..passes.blocks.form_cost import choose_form
from ..passes.blocks.layer_blocks import PivotSite, order_problem, pivot_site
from ..passes.channels.nm_layout import magnitude
from ..passes.depth.gate_sites import survey_activations
from ..passes.depth.insert_gates import InsertGates
from ..planning.plan import PREPARATION
from ..planning.sites import Site, Sites, find_sites
from ..report import Size
from .advice import Finding
from .commands import Commands, open_inputs

WORTH = 0.05
"""The least part of the MACs that a change must concern to be worth a try."""

SPEEDUP = 1.3
"""The speedup that the proposed plan aims at."""

BLOCKS = 4
"""The number of dense blocks that is tried."""

RATIO = 0.25
"""The part of the channels that the proposed pass removes."""

MOST_BYTES = 1 << 30
"""Weights of larger models are not read."""

_LAYERS = (Conv, ConvTranspose, Linear, MatMul)
_QUANTISED = (
    Quantize, Dequantize, QuantizedConv, QuantizedMatMul, IntegerMatMul, DynamicQuantize,
)  # fmt: skip


@dataclass
class Examined:
    """A model that is examined.

    Attributes:
        given: The graph as it was read.
        exact: The graph behind the default pipeline.
        before: The size of the former.
        after: The size of the latter.
        records: What the default pipeline did.
        graph: The graph behind the passes in front of approximate ones.
        commands: Writes the commands.
    """

    given: Graph
    exact: Graph
    before: Size
    after: Size
    records: Sequence[PassRecord]
    graph: Graph
    commands: Commands
    macs: dict[Node, int] = field(init=False)

    def __post_init__(self) -> None:
        self.macs = {n: n.macs or 0 for n in self.graph.nodes if not n.is_constant}

    @cached_property
    def sites(self) -> Sites:
        """The parts that the planner could replace."""
        return find_sites(self.graph)

    @property
    def is_small(self) -> bool:
        """Whether weights may be read."""
        return self.after.bytes <= MOST_BYTES

    def share(self, nodes: Iterable[Node]) -> float:
        """The part of all MACs that some nodes have; each counts once."""
        total = sum(self.macs.values())
        return sum(self.macs.get(n, 0) for n in set(nodes)) / total if total else 0.0


def findings(e: Examined) -> list[Finding]:
    """What each capability could gain, in the order of the table."""
    return [exact(e), depth(e), width(e), two_of_four(e), blocks(e), int8(e), tflite(e)]


def _layers(graph: Graph) -> int:
    return sum(isinstance(n.op, _LAYERS) for n in graph.nodes if not n.is_constant)


def exact(e: Examined) -> Finding:
    """Layers that merge, and nodes that go, without a change of the outputs."""
    layers = _layers(e.given), _layers(e.exact)
    scales = tuple(sum(isinstance(n.op, Scale) for n in g.nodes) for g in (e.given, e.exact))
    nodes = e.before.nodes, e.after.nodes
    macs = e.before.macs, e.after.macs
    figures = {"layers": layers, "scales": scales, "nodes": nodes, "macs": macs}
    parts = [f"{layers[0]:,} -> {layers[1]:,} layers, {nodes[0]:,} -> {nodes[1]:,} nodes"]
    fewer = macs[0] is not None and macs[1] is not None and macs[1] < (1 - WORTH / 5) * macs[0]
    if fewer and macs[0] is not None and macs[1] is not None:
        parts.append(f"{1 - macs[1] / macs[0]:.0%} fewer MACs")
    command = e.commands.shrink("out.onnx")
    if layers[1] < layers[0] or fewer:
        return Finding("exact", "yes", "; ".join(parts), command, figures)
    if nodes[1] < nodes[0]:
        gone = scales[0] - scales[1]
        folded = (
            f"batch norms and scales ({gone:,}) fold into layers"
            if gone > 0
            else "only nodes around the layers go"
        )
        parts += [f"{folded}, as in most runtimes when they load a file"]
        parts += [f"no two layers merge: {_why_no_merge(e)}"]
        return Finding("exact", "small", "; ".join(parts), command, figures)
    return Finding("exact", "no", f"nothing merges: {_why_no_merge(e)}", "", figures)


def _why_no_merge(e: Examined) -> str:
    refused = [f for r in e.records if r.text.startswith("merge-linear") for f in r.refusals]
    if refused:
        return f"for example {refused[0].node}: {refused[0].reason}"
    return "between any two there is an op that is not linear"


def _unknown(e: Examined, capability: str) -> Finding | None:
    """The finding where sizes must be known but are open."""
    if e.after.macs is not None and not any("are open" in r for r in e.sites.refused.values()):
        return None
    if e.sites.found:
        return None
    return _fix_sizes(e, capability)


def _fix_sizes(e: Examined, capability: str, known: str = "", **figures: Any) -> Finding:
    """The finding that asks for sizes, behind what is known without them."""
    why = e.after.notes[0] if e.after.notes else "sizes are open"
    text = f"{known}, but {why}" if known else why
    if not open_inputs(e.given):
        return Finding(capability, "unknown", text, "", figures)
    remedy = "give example_inputs" if e.commands.torch else "fix the sizes of the inputs"
    return Finding(
        capability, "unknown", f"{text}: {remedy}", e.commands.with_sizes(e.given), figures
    )


def depth(e: Examined) -> Finding:
    """Residual blocks that can go, other parts that can become linear, activations whose removal lets layers merge."""
    open_sizes = _unknown(e, "depth")
    if open_sizes is not None:
        return open_sizes
    residual = _of_kind(e.sites, "residual")
    other = _of_kind(e.sites, "branch", "pair", "layer")
    share = e.share(n for s in (*residual, *other) for n in s.nodes)
    skipped = e.share(n for s in residual for n in s.nodes)
    activations = survey_activations(e.graph, InsertGates().merging())
    gates = sum(not site.reason for site in activations)
    figures = {
        "residual_blocks": len(residual), "residual_share": skipped, "other_parts": len(other), "share": share,
        "activations": len(activations), "gates": gates,
    }  # fmt: skip
    trained = ""
    if gates:
        trained = f"; with training, {gates} of {len(activations)} activations can go so that layers merge (docs/depth.md)"
    if share < WORTH:
        why = _commonest(e.sites, ("residual", "branch", "pair", "layer"))
        text = f"no part of the network can be left out or become one linear layer{why}{trained}"
        return Finding("depth", "no", text, "", figures)
    parts = []
    if residual:
        parts.append(
            f"{counted(len(residual), 'residual block')} ({skipped:.0%} of the MACs) can go"
        )
    if other:
        parts.append(f"{counted(len(other), 'part')} can become one linear layer each")
    return Finding(
        "depth", "possible", f"{', '.join(parts)}{trained}", e.commands.plan(SPEEDUP), figures
    )


def _of_kind(sites: Sites, *kinds: str) -> list[Site]:
    return [s for s in sites.found if s.kind in kinds]


def _commonest(sites: Sites, kinds: tuple[str, ...]) -> str:
    """The commonest reason why regions of some kinds are no sites; empty if there are none."""
    reasons = Counter(r for name, r in sites.refused.items() if name.startswith(kinds))
    return f": {reasons.most_common(1)[0][0]}" if reasons else ""


def width(e: Examined) -> Finding:
    """Hidden channels that the planner can remove, and what removing a part of all channels would leave."""
    open_sizes = _unknown(e, "width")
    if open_sizes is not None:
        return open_sizes
    hidden = _of_kind(e.sites, "hidden")
    groups = [s.group for s in hidden if s.group is not None]
    channels = sum(g.size for g in groups)
    share = e.share(n for s in hidden for n in s.nodes)
    figures = {"groups": len(groups), "channels": channels, "share": share}
    kept = _pruned(e)
    if kept is not None:
        figures["kept_macs"] = kept
    command = e.commands.plan(SPEEDUP)
    text = f"{channels:,} hidden channels in {counted(len(groups), 'group')} ({share:.0%} of the MACs) can become fewer"
    if kept is not None and kept < 1 - WORTH:
        text += (
            f"; without a quarter of all channels {kept:.0%} of the MACs are left (docs/width.md)"
        )
        if share < WORTH:
            passes = f"merge-linear,prune-channels{{ratio={RATIO}}},prune-dead"
            command = e.commands.shrink("narrow.onnx", passes)
    elif share < WORTH:
        why = _commonest(e.sites, ("hidden",))
        return Finding("width", "no", f"no layer has channels that can go alone{why}", "", figures)
    return Finding("width", "possible", text, command, figures)


def _pruned(e: Examined) -> float | None:
    """The part of the MACs that ``prune-channels`` would leave; ``None`` if it is not known."""
    before = Size.of(e.graph).macs
    if not e.is_small or not before:
        return None
    graph = e.graph.clone()
    try:
        Pipeline([PruneChannels(ratio=RATIO), "prune-dead"]).run(graph, Context())
    except PassError:
        return None  # The weights cannot be compared, such as those that are not finite.
    macs = Size.of(graph).macs
    return None if macs is None else macs / before


def two_of_four(e: Examined) -> Finding:
    """The weights that can have the 2:4 pattern, and those for which hardware is likely to use it."""
    pattern = Pattern()
    weights = nm_weights(e.graph)
    fits = [w for w in weights if w.reason(pattern) is None]
    likely = [w for w in fits if w.likely()]
    share, used = (e.share(n for w in some for n in w.readers) for some in (fits, likely))
    held = [w for w in likely if _has_pattern(e, w, pattern)]
    size = sum(
        w.value.data.nbytes for w in fits if w.value is not None and w.value.data is not None
    )
    figures = {
        "weights": len(weights), "fit": len(fits), "share": share, "bytes_share": size / e.after.bytes if e.after.bytes else 0.0,
        "likely": len(likely), "likely_share": used, "valid": len(held),
    }  # fmt: skip
    where = "only NVIDIA GPUs from Ampere on have kernels for it; CPUs and phones gain nothing"
    fitting = f"{len(fits)} of {counted(len(weights), 'weight')} fit"
    if likely and e.after.macs is None:
        return _fix_sizes(e, "2:4", f"{fitting}, {len(likely)} are large enough to gain", **figures)
    if e.after.macs is not None:
        fitting += f" ({share:.0%} of the MACs)"
    if not likely or used < WORTH:
        text = (
            f"{fitting}, but layers with fewer than {LIKELY_CHANNELS} channels hardly gain; {where}"
        )
        if not fits:
            text = f"no weight fits the pattern{_first_reason(weights, pattern)}; {where}"
        return Finding("2:4", "no", text, "", figures)
    if len(held) == len(likely):
        text = f"all {counted(len(held), 'large weight')} have the pattern already ({used:.0%} of the MACs); {where}"
        return Finding(
            "2:4",
            "yes",
            text,
            e.commands.shrink("trt.onnx", tensorrt=True),
            figures,
        )
    passes = f"{PREPARATION},permute-channels,sparsify{{method=sparsegpt}}"
    command = e.commands.shrink("sparse.onnx", passes, samples=True, tensorrt=True)
    text = f"{fitting}; {len(likely)} are large enough to gain ({used:.0%}); {where}"
    return Finding("2:4", "possible", text, command, figures)


def _has_pattern(e: Examined, weight: NmWeight, pattern: Pattern) -> bool:
    return e.is_small and weight.value is not None and pattern.holds(magnitude(weight))


def _first_reason(weights: Sequence[NmWeight], pattern: Pattern) -> str:
    reasons = Counter(w.reason(pattern) for w in weights)
    return f": {reasons.most_common(1)[0][0]}" if reasons else ""


def blocks(e: Examined) -> Finding:
    """Layers that are expected to run faster as dense blocks, exactly where their zeros form such blocks."""
    groups = channel_groups(e.graph)
    found: list[PivotSite] = []
    reasons: Counter[str] = Counter()
    for node in e.graph.nodes:
        if not isinstance(node.op, Linear | Conv) or node.is_constant:
            continue
        site = pivot_site(node, groups, {}, BLOCKS, False)
        if isinstance(site, str):
            reasons[site] += 1
        elif problem := order_problem(site):
            reasons[problem] += 1
        elif choose_form(site.work, BLOCKS, "onnx", even=True) is None:
            reasons["their blocks would be too small to gain"] += 1
        else:
            found.append(site)
    share = e.share(s.node for s in found)
    ready = _exact_blocks(e) if found else 0
    figures = {"layers": len(found), "share": share, "exact": ready}
    if found and e.after.macs is None:
        known = f"{counted(len(found), 'layer')} would run faster in {BLOCKS} dense blocks"
        return _fix_sizes(e, "blocks", known, **figures)
    if not found or share < WORTH:
        why = f": {reasons.most_common(1)[0][0]}" if reasons else ": there are no layers"
        return Finding(
            "blocks", "no", f"hardly a layer would run faster in {BLOCKS} blocks{why}", "", figures
        )
    passes = f"{PREPARATION},pivot{{blocks={BLOCKS}}},prune-dead"
    if ready:
        text = f"the zeros of {counted(ready, 'layer')} form {BLOCKS} blocks: they become dense ones, exactly"
        return Finding("blocks", "yes", text, e.commands.shrink("blocks.onnx", passes), figures)
    text = (
        f"{counted(len(found), 'layer')} ({share:.0%} of the MACs) would run faster in {BLOCKS} dense blocks, on CPUs too; "
        "fitted to samples alone they lose accuracy, which training under masks keeps (docs/pivot.md)"
    )
    command = e.commands.shrink("blocks.onnx", passes, samples=True)
    return Finding("blocks", "possible", text, command, figures)


def _exact_blocks(e: Examined) -> int:
    """The number of layers whose zeros form blocks that their neighbours can be reordered for."""
    if not e.is_small:
        return 0
    graph = e.graph.clone()
    (record,) = Pipeline([Pivot(blocks=BLOCKS, method="zeros")]).run(graph, Context())
    return sum(r.what.startswith("pivot into") for r in record.rewrites)


def tflite(e: Examined) -> Finding:
    """Whether the model can be written for LiteRT."""
    from ..emission import emission
    from ..readers import HostReaders
    from ..targets.options import TFLiteOptions
    from ..targets.tflite.convert import flat_model

    if not e.is_small:
        return Finding("tflite", "unknown", f"not tried for models above {MOST_BYTES >> 30} GiB")
    try:
        chosen = emission("out.tflite")
        model, _, data = flat_model(e.exact, TFLiteOptions(), HostReaders())
    except MissingExtra as error:
        return Finding("tflite", "unknown", str(error))
    except ModelError as error:
        return Finding("tflite", "no", str(error))
    count = len(model.operations)
    text = f"can be written for phones and boards: {counted(count, 'operation')}"
    return Finding(
        "tflite",
        "yes",
        text,
        e.commands.shrink(chosen.path.name),
        {"operations": data["operations"]},
    )


def int8(e: Examined) -> Finding:
    """The layers that can compute in 8-bit integers; for a model that is quantised already, what is carried as it is."""
    kinds = Counter(n.op.name for n in e.exact.nodes if isinstance(n.op, _QUANTISED))
    if kinds:
        shown = listed([f"{kind} ({count})" for kind, count in kinds.most_common()])
        text = (
            f"the model is quantised already: {shown}. Quantised weights are carried as they are, and no pass changes them: "
            "shrink the model before it is quantised, or inside requantize{...}"
        )
        return Finding("int8", "no", text, "", {"ops": dict(kinds)})
    graph = e.graph.clone()
    found, refused = QuantizePass().candidates(graph, Rewriter(graph))
    names = {n.output.name for n in found}
    share = e.share(n for n in e.graph.nodes if n.output.name in names)
    weights = {v: v.data.nbytes for n in found if (v := n.required(1)).data is not None}
    left = e.after.bytes - sum(size - size // 4 for size in weights.values())
    figures = {
        "layers": len(found), "other_layers": len(refused), "share": share, "bytes": (e.after.bytes, left),
    }  # fmt: skip
    layers = f"{len(found)} of {counted(len(found) + len(refused), 'layer')}"
    if found and e.after.macs is None:
        return _fix_sizes(e, "int8", f"{layers} can compute in 8-bit integers", **figures)
    if not found or share < WORTH:
        why = "" if found else ": there are no convolutions or dense layers"
        if refused:
            why = f": {Counter(refused.values()).most_common(1)[0][0]}"
        return Finding("int8", "no", f"hardly a layer can compute in integers{why}", "", figures)
    smaller = f", {left / e.after.bytes:.0%} of the bytes are left" if weights else ""
    text = (
        f"{layers} ({share:.0%} of the MACs) can compute in 8-bit integers{smaller}; faster on CPUs with VNNI or dot-product instructions, on phones and in TensorRT, "
        "hardly for small layers (docs/quantize.md)"
    )
    command = e.commands.shrink("int8.onnx", "default,quantize", samples=True)
    return Finding("int8", "possible", text, command, figures)
