"""One ONNX operator in its many forms: what it is read as, and that this means the same, by onnxruntime.

Everything that is understood is spelled anew. A form that is left alone has the operator's own name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphshrink.frontends.onnx.importer import from_onnx
from graphshrink.ir import DType, Opaque, Rewriter
from graphshrink.targets.onnx.emitter import to_onnx
from support.onnx_run import outputs_of

RNG = np.random.default_rng(5)


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


MATRIX, IMAGE = numbers(2, 5), numbers(2, 4, 6, 6)
ZERO_STATE = np.zeros((1, 1, 3), np.float32)
W, IW, V = numbers(5, 3), numbers(6, 4, 3, 3), numbers(4)


def ints(*found: int) -> Any:
    return np.array(found, np.int64)


@dataclass
class Form:
    """One operator: its constants behind the one input, its attributes, and the op that it is read as."""

    becomes: str
    kind: str
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    x: Any = None
    first: bool = True

    def model(self) -> tuple[ModelProto, Any]:
        x = IMAGE if self.x is None else self.x
        given = {f"c{i}": c for i, c in enumerate(self.constants) if c is not None}
        names = [f"c{i}" if c is not None else "" for i, c in enumerate(self.constants)]
        inputs = ["x", *names] if self.first else [*names, "x"]
        to = helper.np_dtype_to_tensor_dtype
        graph = helper.make_graph(
            [helper.make_node(self.kind, inputs, ["y"], **self.attributes)],
            "g",
            [helper.make_tensor_value_info("x", to(x.dtype), x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)],
            [numpy_helper.from_array(np.asarray(c), n) for n, c in given.items()],
        )
        graph.output[0].ClearField("type")
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8), x


def gemms() -> dict[str, Form]:
    found = {}
    shapes: list[Any] = [None, (3,), (1, 3), (1,), (1, 1), ()]
    for alpha, beta, turned, shape in product((1.0, 0.5), (1.0, 0.25, 0.0), (0, 1), shapes):
        attributes = {"alpha": alpha, "beta": beta, "transB": turned}
        constants = (W.T if turned else W, *([numbers(*shape)] if shape is not None else []))
        name = f"gemm-{alpha}-{beta}-{turned}-{shape}"
        found[name] = Form("Linear", "Gemm", constants, attributes, x=MATRIX)
    return found


LIMIT = float(np.finfo(np.float32).max)

FORMS: dict[str, Form] = {
    **gemms(),
    "gemm-full-bias": Form("Add", "Gemm", (W, numbers(2, 3)), x=MATRIX),
    "gemm-column-bias": Form("Add", "Gemm", (W, numbers(2, 1)), x=MATRIX),
    "gemm-turned-input": Form("Linear", "Gemm", (numbers(2, 3),), {"transA": 1}, x=MATRIX),
    "gemm-turned-both": Form("Linear", "Gemm", (numbers(3, 2),), {"transA": 1, "transB": 1, "alpha": 0.5}, x=MATRIX),
    "gemm-turned-biased": Form("Add", "Gemm", (numbers(2, 3), numbers(3)), {"transA": 1, "beta": 0.5}, x=MATRIX),
    "gemm-bias-shared": Form("Add", "Gemm", (W, numbers(2, 3)), {"alpha": 0.25, "beta": 2.0}, x=MATRIX),
    "gemm-of-a-constant": Form("Scale", "Gemm", (numbers(3, 2),), {"alpha": 0.5}, x=MATRIX, first=False),
    "gemm-of-a-constant-turned": Form("MatMul", "Gemm", (numbers(5, 3),), {"transA": 1, "transB": 1}, x=MATRIX, first=False),
    "einsum-dense": Form("Linear", "Einsum", (W,), {"equation": "bi,io->bo"}, x=MATRIX),
    "einsum-dense-turned": Form("Transpose", "Einsum", (W.T,), {"equation": "bi, oi -> ob"}, x=MATRIX),
    "einsum-rows": Form("Linear", "Einsum", (numbers(6, 3),), {"equation": "nchw,wo->ncho"}),
    "einsum-inner": Form("Transpose", "Einsum", (numbers(4, 3),), {"equation": "nchw,co->nohw"}),
    "einsum-batched": Form("MatMul", "Einsum", (numbers(2, 4, 5, 6),), {"equation": "bhid,bhjd->bhij"}),
    "einsum-swapped": Form("Transpose", "Einsum", (numbers(2, 4, 5, 6),), {"equation": "bhid,bhjd->bihj"}),
    "einsum-outer": Form("Mul", "Einsum", (numbers(2, 5),), {"equation": "bi,bj->bij"}, x=MATRIX),
    "einsum-implicit": Form("Linear", "Einsum", (numbers(2, 6),), {"equation": "bi,bj"}, x=MATRIX),
    "einsum-dots": Form("Linear", "Einsum", (numbers(6, 7),), {"equation": "...i,ij->...j"}),
    "einsum-one": Form("Transpose", "Einsum", (), {"equation": "bcij->jb"}),
    "einsum-same": Form("Identity", "Einsum", (), {"equation": "bi"}, x=MATRIX),
    "einsum-scalar": Form("Reduce", "Einsum", (), {"equation": "bi->"}, x=MATRIX),
    "einsum-rows-only": Form("Reshape", "Einsum", (numbers(4, 6),), {"equation": "bcij,cj->bi"}),
    "einsum-columns": Form("Reshape", "Einsum", (numbers(4, 3, 2),), {"equation": "bcij,ckl->bijkl"}),
    "einsum-three": Form("Linear", "Einsum", (W, numbers(3, 2)), {"equation": "bi,ij,jk->bk"}, x=MATRIX),
    "einsum-diagonal": Form("onnx:Einsum", "Einsum", (), {"equation": "bcii->bc"}),
    "einsum-two-sums": Form("Reshape", "Einsum", (numbers(6, 6, 2),), {"equation": "bcij,ijk->bck"}),
    "einsum-summed-alone": Form("MatMul", "Einsum", (numbers(3, 5, 2),), {"equation": "bi,jik->bk"}, x=MATRIX),
    "matmul": Form("Linear", "MatMul", (W,), x=MATRIX),
    "matmul-vector": Form("Linear", "MatMul", (W,), x=numbers(5)),
    "matmul-batch": Form("MatMul", "MatMul", (numbers(4, 6, 3),)),
    "matmul-of-a-vector": Form("MatMul", "MatMul", (numbers(6),)),
    # Windows.
    **{f"conv-{auto}-{stride}": Form("Conv", "Conv", (IW,), {"auto_pad": auto, "strides": [stride] * 2})
       for auto in ("SAME_UPPER", "SAME_LOWER", "VALID") for stride in (1, 2, 3)},
    "conv-dilated": Form("Conv", "Conv", (IW,), {"auto_pad": "VALID", "dilations": [2, 1]}),
    **{f"conv-even-{auto}": Form("Conv", "Conv", (numbers(6, 4, 2, 4),), {"auto_pad": auto})
       for auto in ("SAME_UPPER", "SAME_LOWER")},
    "conv-pads": Form("Conv", "Conv", (IW, numbers(6)), {"pads": [0, 1, 2, 3], "strides": [1, 2]}),
    "conv-groups": Form("Conv", "Conv", (numbers(6, 2, 3, 3),), {"group": 2, "kernel_shape": [3, 3]}),
    "conv-1d": Form("Conv", "Conv", (numbers(3, 4, 2),), {"dilations": [2]}, x=numbers(2, 4, 9)),
    "transposed": Form("ConvTranspose", "ConvTranspose", (numbers(4, 3, 3, 2), numbers(6)),
                       {"group": 2, "strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 1, 0]}),
    "transposed-plain": Form("ConvTranspose", "ConvTranspose", (numbers(4, 3, 3, 2),), {"output_padding": [0, 0]}),
    "transposed-valid": Form("ConvTranspose", "ConvTranspose", (numbers(4, 3, 3, 2),), {"auto_pad": "VALID"}),
    **{f"transposed-{auto}-{k}-{stride}-{extra}": Form("ConvTranspose", "ConvTranspose", (numbers(4, 3, k, k + 1),),
          {"auto_pad": auto, "strides": [stride] * 2, **({"output_padding": [extra, 0]} if extra else {})})
       for auto in ("SAME_UPPER", "SAME_LOWER") for k, stride, extra in ((3, 1, 0), (3, 2, 0), (2, 2, 0), (4, 3, 2), (3, 2, 1))},
    "transposed-larger-strides": Form("onnx:ConvTranspose", "ConvTranspose", (numbers(4, 3, 2, 2),), {"auto_pad": "SAME_UPPER", "strides": [3, 3]}),
    **{f"transposed-shape-{size}-{auto}": Form("ConvTranspose", "ConvTranspose", (numbers(4, 3, 3, 3),), {"output_shape": [size, size + 1], "strides": [2, 2], "auto_pad": auto})
       for size in (10, 11, 12) for auto in ("NOTSET", "SAME_UPPER", "SAME_LOWER")},
    "transposed-shape": Form("ConvTranspose", "ConvTranspose", (numbers(4, 3, 3, 3),), {"output_shape": [8, 8]}),
    **{f"pool-{auto}-{stride}": Form("AveragePool", "AveragePool", (), {"auto_pad": auto, "kernel_shape": [3, 2], "strides": [stride] * 2})
       for auto in ("SAME_UPPER", "SAME_LOWER", "VALID") for stride in (1, 2)},
    "pool-counted": Form("AveragePool", "AveragePool", (), {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "count_include_pad": 1}),
    "pool-uncounted": Form("AveragePool", "AveragePool", (), {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1]}),
    "pool-ceil": Form("AveragePool", "AveragePool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "pool-ceil-auto": Form("onnx:AveragePool", "AveragePool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "auto_pad": "SAME_UPPER"}),
    "maxpool": Form("MaxPool", "MaxPool", (), {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1], "dilations": [1, 2]}),
    "maxpool-columns": Form("MaxPool", "MaxPool", (), {"kernel_shape": [2, 2], "storage_order": 1}),
    "globalmax": Form("Reduce", "GlobalMaxPool"),
    "norm": Form("Scale", "BatchNormalization", (V, numbers(4), numbers(4), V**2 + 0.5), {"epsilon": 0.25}),
    "norm-places": Form("Add", "BatchNormalization", (IMAGE[0], IMAGE[1], numbers(4, 6, 6), IMAGE[0] ** 2 + 0.5), {"spatial": 0}, 7),
    "norm-matrix": Form("Scale", "BatchNormalization", (W[:, 0], W[:, 1], W[:, 2], W[:, 0] ** 2), x=MATRIX),
    # Arithmetic.
    **{f"{kind}-{i}-{first}": Form("Scale", kind, (c,), first=first)
       for kind in ("Add", "Sub", "Mul") for first in (True, False)
       for i, c in enumerate((numbers(4, 1, 1), numbers(6), numbers(6, 1), numbers(1, 4, 1, 1), numbers(2, 1, 1, 1), numbers(), numbers(1)))},
    **{f"Div-{i}": Form("Scale", "Div", (np.abs(c) + 0.5,)) for i, c in enumerate((numbers(4, 1, 1), numbers(6), numbers()))},
    "divided": Form("Div", "Div", (numbers(4, 1, 1),), first=False),
    **{f"div-by-{c!r}": Form(becomes, "Div", (np.full((1,), c, np.float32),), x=np.full((2, 3), x, np.float32))
       for c, x, becomes in ((2.0**-126, 2.0**-20, "Scale"), (2.0**-128, 2.0**-20, "Div"), (2.0**125, 2.0**100, "Scale"), (2.0**127, 2.0**100, "Div"))},
    "add-of-a-map": Form("Add", "Add", (numbers(1, 4, 6, 6),)),
    "add-of-two-axes": Form("Add", "Add", (numbers(4, 1, 6),)),
    "add-that-grows": Form("Add", "Add", (numbers(3),), x=numbers(2, 1)),
    "add-that-adds-an-axis": Form("Add", "Add", (numbers(3, 1, 1, 1),), x=numbers(2, 3, 1)),
    "add-of-integers": Form("Add", "Add", (ints(3),), x=ints(1, 2)),
    # Pads.
    "pad": Form("Pad", "Pad", (ints(0, 1, 2, 0, 1, 0, 0, 3),)),
    "pad-value": Form("Pad", "Pad", (ints(0, 1, 2, 0, 1, 0, 0, 3), np.float32(1.5))),
    "pad-crop": Form("Pad", "Pad", (ints(0, -1, 2, 0, 0, 0, 0, -3),)),
    "pad-reflect": Form("Pad", "Pad", (ints(0, 0, 2, 1, 0, 0, 1, 3),), {"mode": "reflect"}),
    "pad-edge": Form("Pad", "Pad", (ints(0, 0, 2, 1, 0, 0, 1, 3),), {"mode": "edge"}),
    "pad-wrap": Form("Pad", "Pad", (ints(0, 0, 2, 1, 0, 0, 1, 3),), {"mode": "wrap"}, 19),
    "pad-axes": Form("Pad", "Pad", (ints(1, 2, 3, 4), np.float32(2.0), ints(-1, 1)), opset=18),
    "pad-not-a-number": Form("onnx:Pad", "Pad", (ints(0, 0, 0, 1, 0, 0, 0, 0), np.float32(np.nan))),
    "pad-of-attributes": Form("Pad", "Pad", (), {"pads": [0, 1, 2, 0, 1, 0, 0, 3], "value": 0.5}, 9),
    "pad-of-integers": Form("onnx:Pad", "Pad", (ints(1, 1),), x=ints(1, 2)),
    # Functions.
    "clip": Form("Activation", "Clip", (np.float32(-0.5), np.float32(0.25))),
    "clip-low": Form("Activation", "Clip", (np.float32(-0.5),)),
    "clip-high": Form("Activation", "Clip", (None, np.float32(0.25))),
    "clip-six": Form("Activation", "Clip", (np.float32(0.0), np.float32(6.0)), x=5 * IMAGE),
    "clip-nan": Form("onnx:Clip", "Clip", (np.float32(np.nan), np.float32(6.0))),
    "clip-of-integers": Form("Max", "Clip", (np.int64(2),), x=ints(1, 5)),
    "clip-of-attributes": Form("Activation", "Clip", (), {"min": -0.5, "max": 0.25}, 10),
    "clip-open-below": Form("Activation", "Clip", (), {"min": -LIMIT, "max": 0.25}, 10),
    "clip-open-above": Form("Activation", "Clip", (), {"min": 0.25, "max": LIMIT}, 10),
    "elu": Form("Activation", "Elu", (), {"alpha": 0.5}), "elu-plain": Form("Activation", "Elu"),
    "celu": Form("Activation", "Celu", (), {"alpha": 0.5}), "celu-plain": Form("Activation", "Celu"),
    "selu": Form("Activation", "Selu", (), {"alpha": 1.5, "gamma": 0.5}), "selu-plain": Form("Activation", "Selu"),
    "leaky": Form("Activation", "LeakyRelu", (), {"alpha": 0.5}), "leaky-plain": Form("Activation", "LeakyRelu"),
    "hard": Form("Activation", "HardSigmoid", (), {"alpha": 0.3, "beta": 0.4}), "hard-plain": Form("Activation", "HardSigmoid"),
    "hard-sixth": Form("Activation", "HardSigmoid", (), {"alpha": 1 / 6, "beta": 0.5}),
    "threshold": Form("Activation", "ThresholdedRelu", (), {"alpha": 0.5}), "threshold-plain": Form("Activation", "ThresholdedRelu"),
    "gelu": Form("Activation", "Gelu", opset=20), "gelu-tanh": Form("Activation", "Gelu", (), {"approximate": "tanh"}, 20),
    "prelu": Form("PRelu", "PRelu", (numbers(4, 1, 1),)), "prelu-last": Form("PRelu", "PRelu", (numbers(6),)),
    "prelu-one": Form("PRelu", "PRelu", (numbers(1),)), "prelu-map": Form("Where", "PRelu", (numbers(4, 6, 6),)), "prelu-pixels": Form("Where", "PRelu", (numbers(6, 6),), opset=9),
    "prelu-computed": Form("Where", "PRelu", (numbers(3, 4),), x=numbers(4), first=False), "prelu-6": Form("onnx:PRelu", "PRelu", (numbers(4),), opset=6),
    **{f"lstm-{name}": Form(becomes, "LSTM", (numbers(d, 12, 4), numbers(d, 12, 3), *more), {"hidden_size": 3, **attributes}, 14, x=numbers(2, 1, 4))
       for name, becomes, d, more, attributes in (
           ("plain", "Lstm", 1, (), {}), ("bias", "Lstm", 1, (numbers(1, 24),), {}), ("back", "Lstm", 1, (), {"direction": "reverse"}),
           ("said", "Lstm", 1, (), {"activations": ["sigmoid", "Tanh", "Tanh"]}), ("zero-states", "Lstm", 1, (None, None, ZERO_STATE, ZERO_STATE), {}),
           ("both", "Lstm", 2, (numbers(2, 24), None, numbers(2, 1, 3), numbers(2, 1, 3)), {"direction": "bidirectional"}),
           ("coupled", "onnx:LSTM", 1, (), {"input_forget": 1}), ("batch-first", "onnx:LSTM", 1, (), {"layout": 1}), ("clipped", "onnx:LSTM", 1, (), {"clip": 0.5}),
           ("peepholes", "Lstm", 1, (None, None, None, None, numbers(1, 9)), {}), ("peepholes-both", "Lstm", 2, (numbers(2, 24), None, numbers(2, 1, 3), numbers(2, 1, 3), numbers(2, 9)), {"direction": "bidirectional"}),
           ("zero-peepholes", "Lstm", 1, (None, None, None, None, np.zeros((1, 9), np.float32)), {}), ("other-functions", "onnx:LSTM", 1, (), {"activations": ["Relu", "Tanh", "Tanh"]}),
           ("swapped-functions", "onnx:LSTM", 1, (), {"activations": ["Tanh", "Sigmoid", "Tanh"]}),
           ("default-functions", "Lstm", 1, (), {"activations": ["Sigmoid", "tanh", "Tanh"]}),
           ("functions-backwards", "Lstm", 1, (), {"activations": ["Sigmoid", "Tanh", "Tanh"], "direction": "reverse"}),
           ("functions-both-ways", "Lstm", 2, (), {"activations": ["Sigmoid", "Tanh", "Tanh"] * 2, "direction": "bidirectional"}),
           ("one-way-differs", "onnx:LSTM", 2, (), {"activations": ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"], "direction": "bidirectional"}))},
    **{f"gru-{name}": Form(becomes, "GRU", (numbers(d, 9, 4), numbers(d, 9, 3), *more), {"hidden_size": 3, **attributes}, opset, x=numbers(3, 1, 4))
       for name, becomes, d, more, opset, attributes in (
           ("plain", "Gru", 1, (), 14, {}), ("bias", "Gru", 1, (numbers(1, 18),), 22, {}), ("back", "Gru", 1, (), 7, {"direction": "reverse"}),
           ("after", "Gru", 1, (numbers(1, 18),), 14, {"linear_before_reset": 1}), ("after-plain", "Gru", 1, (), 14, {"linear_before_reset": 1}),
           ("zero-state", "Gru", 1, (None, None, ZERO_STATE), 14, {}), ("lengths", "Gru", 1, (numbers(1, 18), np.array([2], np.int32)), 14, {}),
           ("said", "Gru", 1, (), 14, {"activations": ["sigmoid", "TANH"]}), ("said-both-ways", "Gru", 2, (), 14, {"activations": ["Sigmoid", "Tanh"] * 2, "direction": "bidirectional"}),
           ("both", "Gru", 2, (numbers(2, 18), None, numbers(2, 1, 3)), 14, {"direction": "bidirectional", "linear_before_reset": 1}),
           ("batch-first", "onnx:GRU", 1, (), 14, {"layout": 1}), ("clipped", "onnx:GRU", 1, (), 14, {"clip": 0.5}),
           ("other-functions", "onnx:GRU", 1, (), 14, {"activations": ["Sigmoid", "Relu"]}),
           ("one-way-differs", "onnx:GRU", 2, (), 14, {"activations": ["Sigmoid", "Tanh", "Sigmoid", "Relu"], "direction": "bidirectional"}))},
    **{f"rnn-{name}": Form(becomes, "RNN", (numbers(d, 3, 4), numbers(d, 3, 3), *more), {"hidden_size": 3, **attributes}, opset, x=numbers(3, 1, 4))
       for name, becomes, d, more, opset, attributes in (
           ("plain", "Rnn", 1, (), 14, {}), ("bias", "Rnn", 1, (numbers(1, 6),), 7, {}), ("back", "Rnn", 1, (), 22, {"direction": "reverse"}),
           ("relu", "Rnn", 1, (numbers(1, 6), None, numbers(1, 1, 3)), 14, {"activations": ["Relu"]}), ("said", "Rnn", 1, (), 14, {"activations": ["Tanh"]}),
           ("relu-both", "Rnn", 2, (numbers(2, 6),), 14, {"activations": ["Relu", "Relu"], "direction": "bidirectional"}), ("both", "Rnn", 2, (), 14, {"direction": "bidirectional"}),
           ("lengths", "Rnn", 1, (None, np.array([1], np.int32)), 14, {}), ("other-functions", "onnx:RNN", 1, (), 14, {"activations": ["Sigmoid"]}),
           ("one-way-differs", "onnx:RNN", 2, (), 14, {"activations": ["Tanh", "Relu"], "direction": "bidirectional"}),
           ("with-a-slope", "onnx:RNN", 1, (), 14, {"activations": ["Relu"], "activation_alpha": [0.5]}), ("clipped", "onnx:RNN", 1, (), 14, {"clip": 0.5}))},
    "instance": Form("GroupNorm", "InstanceNormalization", (numbers(4), numbers(4)), {"epsilon": 0.25}),
    "layer": Form("LayerNorm", "LayerNormalization", (numbers(6), numbers(6)), {"epsilon": 0.25}),
    "lrn-even": Form("onnx:LRN", "LRN", (), {"size": 4}),
    **{f"lrn-{size}": Form("LocalResponseNorm", "LRN", (), {"size": size, "alpha": 0.5, "beta": 0.6, "bias": 0.75}) for size in (1, 3, 5, 9)},
    "lrn-plain": Form("LocalResponseNorm", "LRN", (), {"size": 3}, 1),
    "group-18": Form("GroupNorm", "GroupNormalization", (numbers(2), numbers(2)), {"num_groups": 2}, 18),
    "group-21": Form("GroupNorm", "GroupNormalization", (numbers(4), numbers(4)), {"num_groups": 2}, 21),
    "layer-two-axes": Form("LayerNorm", "LayerNormalization", (numbers(6, 6), numbers(6, 6)), {"axis": 2}),
    "layer-without": Form("LayerNorm", "LayerNormalization", (numbers(4, 6, 6),), {"axis": 1}),
    "layer-broadcast": Form("onnx:LayerNormalization", "LayerNormalization", (numbers(6), numbers(6)), {"axis": 2}),
    "dropout": Form("Identity", "Dropout"), "dropout-ratio": Form("Identity", "Dropout", (np.float32(0.5),)),
    "dropout-said": Form("Identity", "Dropout", (np.float32(0.5), np.array(False))), "dropout-training": Form("onnx:Dropout", "Dropout", (np.float32(0.5), np.array(True))),
    "pow": Form("Pow", "Pow", (np.float32(2.0),)), "pow-int": Form("Pow", "Pow", (np.int64(3),)),
    "pow-wide": Form("Pow", "Pow", (np.full((1, 1), 2, np.int32),)),
    **{f"softmax-{opset}-{axis}": Form(becomes, kind, (), {} if axis is None else {"axis": axis}, opset)
       for kind in ("Softmax", "LogSoftmax")
       for opset, axis, becomes in ((13, None, kind), (13, 1, kind), (13, -2, kind), (11, None, "Reshape"), (11, 3, kind), (11, -1, kind), (11, 2, "Reshape"), (11, -2, "Reshape"), (11, 0, "Reshape"))},
    "softmax-11-channels": Form("Softmax", "Softmax", (), {}, 11, numbers(2, 5, 1, 1)),
    "softmax-11-matrix": Form("Softmax", "Softmax", (), {}, 11, MATRIX),
    # Shapes.
    **{f"reduce-{kind}-{keep}-{axes}": Form("GlobalAveragePool" if (kind, keep, axes) == ("Mean", 1, (2, 3)) else "Reduce",
       f"Reduce{kind}", (), {"keepdims": keep, **({"axes": list(axes)} if axes else {})}, 12)
       for kind in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2") for keep in (0, 1) for axes in ((2, 3), (-1, 1), None)},
    "reduce-6d": Form("Reduce", "ReduceMean", (), {"axes": [2, 3, 4, 5]}, 12, numbers(2, 3, 2, 1, 2, 2)),
    "reduce-noop": Form("onnx:ReduceSum", "ReduceSum", (), {"noop_with_empty_axes": 1}),
    "reduce-input": Form("Reduce", "ReduceSum", (ints(1, -1),)),
    **{f"reshape-{'.'.join(map(str, s))}": Form(becomes, "Reshape", (ints(*s),))
       for s, becomes in (((0, -1), "Flatten"), ((2, 144), "Flatten"), ((-1, 144), "Flatten"), ((8, 36), "Reshape"), ((-1, 4, 36), "Reshape"), ((0, 0, -1), "Reshape"), ((2, 2, 2, 36), "Reshape"), ((-1,), "Reshape"), ((4, 72), "Reshape"))},
    "flatten": Form("Flatten", "Flatten"), "flatten-2": Form("Flatten", "Flatten", (), {"axis": 2}),
    "flatten-last": Form("Flatten", "Flatten", (), {"axis": -1}), "flatten-0": Form("Flatten", "Flatten", (), {"axis": 0}),
    "transpose": Form("Transpose", "Transpose"), "transpose-said": Form("Transpose", "Transpose", (), {"perm": [0, 3, 1, 2]}),
    "squeeze": Form("Squeeze", "Squeeze", x=numbers(1, 3, 1, 2)),
    "squeeze-axis": Form("Squeeze", "Squeeze", (ints(-2),), x=numbers(1, 3, 1, 2)),
    "unsqueeze": Form("Unsqueeze", "Unsqueeze", (ints(-1, 1),), x=MATRIX),
    "slice": Form("Slice", "Slice", (ints(1, 0), ints(5, -1), ints(3, 1), ints(2, 1))),
    "slice-first-axes": Form("Slice", "Slice", (ints(0, 1), ints(9, 3))),
    "slice-of-everything": Form("Identity", "Slice", (ints(0, 0), ints(9, 4))),
    "slice-tail": Form("Slice", "Slice", (ints(-2), ints(2**62), ints(-1))),
    "slice-back": Form("Gather", "Slice", (ints(-1), ints(-9), ints(2), ints(-1))),
    "slice-back-far": Form("Gather", "Slice", (ints(2**62), ints(-(2**63)), ints(2), ints(-2))),
    "slice-back-nothing": Form("Gather", "Slice", (ints(0), ints(5), ints(3), ints(-1))),
    "slice-both-ways": Form("Gather", "Slice", (ints(1, 3, 5), ints(9, 0, 1), ints(2, 1, 3), ints(2, -1, -3))),
    **{f"tile-{'.'.join(map(str, n))}": Form(becomes, "Tile", (ints(*n),)) for n, becomes in (((1, 2, 1, 3), "Concat"), ((1, 1, 1, 1), "Identity"), ((1, 5, 5, 1), "onnx:Tile"), ((1, 0, 1, 1), "onnx:Tile"))},
    **{f"{kind}-{count}": Form(becomes, kind, tuple(numbers(*s) for s in ((4, 1, 1), (2, 1, 6, 1), (6,))[:count])) for kind, count, becomes in
       (("Sum", 0, "Identity"), ("Sum", 1, "Scale"), ("Sum", 3, "Add"), ("Mean", 0, "Identity"), ("Mean", 1, "Scale"), ("Mean", 3, "Scale"))},
    **{f"{kind}-{keep}-{axes}": Form(becomes, kind, (), {"keepdims": keep, **({"axes": list(axes)} if axes else {})}, 12, np.abs(IMAGE))
       for kind, becomes in (("ReduceSumSquare", "Reduce"), ("ReduceLogSum", "Unary")) for keep in (0, 1) for axes in ((2, -1), None)},
    **{f"logsumexp-{opset}-{keep}-{axes}": Form("Add" if keep else "Squeeze", "ReduceLogSumExp", (ints(*axes),) if axes and opset >= 18 else (), {"keepdims": keep, **({"axes": list(axes)} if axes and opset < 18 else {})}, opset, 60 * IMAGE)
       for opset in (11, 13, 18) for keep in (0, 1) for axes in ((2, -1), (0,), None)},
    "logsumexp-large": Form("Add", "ReduceLogSumExp", (), {}, 13, np.float32([[3e38, 3e38, -3e38]])),
    "logsumexp-of-nothing": Form("onnx:ReduceLogSumExp", "ReduceLogSumExp", (), {"axes": [1]}, 13, np.zeros((2, 0), np.float32)),
    **{f"hardmax-{opset}-{axis}": Form("Cast", "Hardmax", (), {} if axis is None else {"axis": axis}, opset, np.round(IMAGE)) for opset, axis in ((13, None), (13, 1), (13, -2), (13, 0), (11, 3), (11, -1))},
    "hardmax-11-joined": Form("onnx:Hardmax", "Hardmax", (), {}, 11), "hardmax-11-ones": Form("Cast", "Hardmax", (), {}, 11, numbers(3, 5, 1, 1)), "hardmax-ties": Form("Cast", "Hardmax", x=np.ones((2, 3), np.float32)),
    **{f"shrink-{bias}": Form("Where", "Shrink", (), {"lambd": 0.5, "bias": bias}) for bias in (0.0, 0.5, 0.2)},
    "hardmax-vector": Form("Cast", "Hardmax", x=numbers(5)), "hardmax-none": Form("onnx:Hardmax", "Hardmax", x=numbers(2, 0)),
    **{f"lp-{p}-{axis}": Form("Div", "LpNormalization", (), {**({"p": p} if p else {}), **({} if axis is None else {"axis": axis})}, opset, np.where(IMAGE[:, :1] > 0, IMAGE, 0)) for p, axis, opset in ((1, 1, 17), (2, -2, 11), (None, None, 22), (None, 0, 17))},
    "lp-zeros": Form("Div", "LpNormalization", x=np.zeros((2, 3), np.float32)),
    **{f"mvn-{opset}-{axes}": Form("Div", "MeanVarianceNormalization", (), {"axes": list(axes)} if axes else {}, opset, 2 * IMAGE + 1) for opset in (9, 13) for axes in (None, (2, 3), (1,), (0, 1, 2, 3))},
    "gather": Form("Gather", "Gather", (ints(2, 0),), {"axis": -1}),
    "gather-one": Form("Select", "Gather", (np.int64(-1),), {"axis": 1}),
    "gather-first": Form("Select", "Gather", (np.int64(1),)),
    "gather-matrix": Form("Gather", "Gather", (np.array([[0, 1], [3, -1]]),), {"axis": 1}),
    "embedding": Form("Embedding", "Gather", (W,), x=ints(0, 4, 2), first=False),
    "embedding-last": Form("Gather", "Gather", (W,), {"axis": 1}, x=ints(0, 2), first=False),
    "expand": Form("Expand", "Expand", (ints(3, 1, 5),), x=numbers(2, 1)),
    "expand-nothing": Form("Identity", "Expand", (ints(1, 5),), x=MATRIX),
    "cumsum": Form("CumSum", "CumSum", (np.int64(-1),)),
    "cumsum-back": Form("CumSum", "CumSum", (np.int64(1),), {"reverse": 1, "exclusive": 1}),
    "argmax": Form("ArgReduce", "ArgMax"), "argmin": Form("ArgReduce", "ArgMin", (), {"axis": -1, "keepdims": 0}),
    "argmax-last": Form("ArgReduce", "ArgMax", (), {"axis": 1, "select_last_index": 1}, x=np.ones((2, 3), np.float32)),
    "concat": Form("Concat", "Concat", (IMAGE[:, :2],), {"axis": 1}), "concat-last": Form("Concat", "Concat", (IMAGE,), {"axis": -1}),
    # Resolutions.
    **{f"resize-{mode}-{at}": Form("Resize", "Resize", (None, np.array([1, 1, 1.5, 2], np.float32)), {"mode": mode, "coordinate_transformation_mode": at})
       for mode in ("nearest", "linear", "cubic") for at in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")},
    **{f"resize-{mode}-sizes": Form("Resize", "Resize", (None, None, ints(2, 4, 9, 4)), {"mode": mode}) for mode in ("nearest", "linear", "cubic")},
    **{f"resize-round-{r}": Form("Resize", "Resize", (None, np.array([1, 1, 2, 2], np.float32)), {"nearest_mode": r})
       for r in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")},
    "resize-axes": Form("Resize", "Resize", (None, np.array([2, 1.5], np.float32)), {"axes": [3, 2], "mode": "linear"}, 18),
    "resize-axes-sizes": Form("Resize", "Resize", (None, None, ints(12, 9)), {"axes": [3, 2], "mode": "linear"}, 18),
    "resize-outside": Form("Resize", "Resize", (None, np.array([1, 1, 0.7, 0.6], np.float32)), {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}),
    "resize-aspect": Form("onnx:Resize", "Resize", (None, None, ints(9, 7)), {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger", "mode": "linear"}, 18),
    "resize-10": Form("Resize", "Resize", (np.array([1, 1, 2, 3], np.float32),), {"mode": "nearest"}, 10),
    "resize-10-smaller": Form("Resize", "Resize", (np.array([1, 1, 0.5, 0.5], np.float32),), {"mode": "nearest"}, 10),
    "resize-10-both": Form("onnx:Resize", "Resize", (np.array([1, 1, 0.5, 2], np.float32),), {"mode": "nearest"}, 10),
    "resize-10-linear": Form("Resize", "Resize", (np.array([1, 1, 0.5, 2], np.float32),), {"mode": "linear"}, 10),
    "upsample": Form("Resize", "Upsample", (np.array([1, 1, 2, 3], np.float32),), {}, 9),
    "upsample-7": Form("Resize", "Upsample", (), {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}, 7),
    "to-space": Form("DepthToSpace", "DepthToSpace", (), {"blocksize": 2}),
    "to-space-crd": Form("DepthToSpace", "DepthToSpace", (), {"blocksize": 2, "mode": "CRD"}),
    "to-depth": Form("SpaceToDepth", "SpaceToDepth", (), {"blocksize": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str) -> None:
    form = FORMS[name]
    model, x = form.model()
    graph = from_onnx(model)
    assert to_onnx(graph) == model
    (node,) = (n for n in graph.nodes if n.output in graph.outputs)
    found = node.op.kind if isinstance(node.op, Opaque) else node.op.name
    assert found == form.becomes
    if isinstance(node.op, Opaque):
        return
    Rewriter(graph).replace(node, node.op, node.inputs)
    (want,), (got,) = (outputs_of(m, {"x": x}, plain=True) for m in (model, to_onnx(graph)))
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5 * float(np.abs(want).max(initial=0)))


@pytest.mark.parametrize("exponent", [np.int64(3), np.full((1, 1), 3, np.int32), np.float32(3), np.full((1,), 3, np.float32)])  # fmt: skip
def test_an_exponent_is_a_number_of_the_type_of_its_base(exponent: Any) -> None:
    model, _ = Form("Pow", "Pow", (exponent,)).model()
    (node,) = from_onnx(model).nodes
    data = node.inputs[1].data if node.inputs[1] is not None else None
    assert data is not None
    assert (data.shape, data.dtype, float(data.numpy())) == ((), DType.F32, 3.0)
