"""The parts of random torch modules: modules, functions, views, writes in place, sizes, buffers, hooks, options."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from .draw import Draw
from .torch_programs import Grower, Program

Entry = Callable[[Grower], object]


def conv(g: Grower) -> object:
    x = g.pick(3, 4, 4, 5)
    if x is None:
        return None
    draw, (_, c, *size) = g.draw, g.shape(x)
    n = len(size)
    groups = draw.pick([1, 1, 1, c, *(k for k in (2, 3) if c % k == 0)])
    out = groups * draw.pick([1, 2]) if groups > 1 else draw.pick([1, 2, 3, 4, 6, c, c])
    k = draw.pick([1, 1, 2, 3, 3])
    words = [f"{c}, {out}, {k}"]
    if draw.chance(0.6) and k > 1:
        words.append(f"padding={draw.pick([1, k // 2, repr('same')])}")
    if draw.chance(0.25) and "same" not in words[-1]:
        words.append("stride=2")
    if draw.chance(0.15):
        words.append("dilation=2")
    if groups > 1:
        words.append(f"groups={groups}")
    if draw.chance(0.4):
        words.append("bias=False")
    if draw.chance(0.06):
        words.append(f"padding_mode={draw.pick(['circular', 'reflect', 'replicate'])!r}")
    return g.module(f"nn.Conv{n}d({', '.join(words)})", x)


def conv_transpose(g: Grower) -> object:
    x = g.pick(3, 4)
    if x is None:
        return None
    draw, (_, c, *size) = g.draw, g.shape(x)
    groups = draw.pick([1, 1, c])
    k, s = draw.whole(1, 3), draw.pick([1, 2])
    more = f", padding={draw.whole(0, (k - 1) // 2)}, output_padding={draw.whole(0, s - 1)}, groups={groups}"
    return g.module(
        f"nn.ConvTranspose{len(size)}d({c}, {groups * draw.whole(1, 2)}, {k}, stride={s}{more})", x
    )


def norm(g: Grower) -> object:
    x = g.pick(2, 3, 4, 4, 5)
    if x is None:
        return None
    draw, (_, c, *size) = g.draw, g.shape(x)
    n = max(1, len(size))
    match draw.weighted({"batch": 7, "group": 1, "layer": 1.5, "instance": 0.7, "function": 1}):
        case "batch":
            affine = draw.pick(["", "", ", affine=False", ", eps=0.1", ", eps=1e-30"])
            return g.module(f"nn.BatchNorm{n}d({c}{affine})", x)
        case "group":
            return g.module(f"nn.GroupNorm({draw.pick([1, c])}, {c})", x)
        case "layer":
            return g.module(f"nn.LayerNorm({g.shape(x)[-1]})", x)
        case "function":
            name = g.name("f")
            parts = ["mean", "var", "weight", "bias"]
            init = [f"self.register_buffer('{name}_{p}', torch.rand({c}) + 0.5)" for p in parts]
            return g.step(
                f"F.batch_norm({x}, {', '.join(f'self.{name}_{p}' for p in parts)})", init
            )
        case _:
            return g.module(f"nn.InstanceNorm{n}d({c}, affine={draw.chance(0.5)}, eps=0.01)", x)


def linear(g: Grower) -> object:
    x = g.pick(low=1)
    if x is None:
        return None
    draw = g.draw
    bias = "" if draw.chance(0.7) else ", bias=False"
    return g.module(
        f"nn.Linear({g.shape(x)[-1]}, {draw.pick([1, 2, 4, 5, g.shape(x)[-1]])}{bias})", x
    )


MODULES = (
    "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU6()", "nn.SiLU()", "nn.SiLU(inplace=True)", "nn.GELU()", "nn.GELU('tanh')", "nn.Sigmoid()",
    "nn.Tanh()", "nn.Hardswish()", "nn.Hardswish(inplace=True)", "nn.Hardsigmoid()", "nn.LeakyReLU(0.2)", "nn.LeakyReLU(0.1, inplace=True)",
    "nn.ELU(0.5)", "nn.Softplus()", "nn.Mish()", "nn.Identity()", "nn.Dropout(0.3)", "nn.Dropout(0.3, inplace=True)", "nn.Softmax(-1)", "nn.LogSoftmax(1)",
    "nn.Flatten()", "nn.Flatten(0, 1)", "nn.PReLU()", "nn.Hardtanh(-0.5, 0.7)", "nn.CELU(0.7)", "nn.SELU()", "nn.Softsign()",
)  # fmt: skip


def module(g: Grower) -> object:
    x = g.pick(low=1)
    return x and g.module(g.draw.pick(MODULES), x)


def pool(g: Grower) -> object:
    x = g.pick(3, 4)
    if x is None:
        return None
    draw, n = g.draw, len(g.shape(x)) - 2
    return g.module(draw.pick([
        f"nn.AvgPool{n}d(2)", f"nn.AvgPool{n}d(3, stride=1, padding=1)", f"nn.AvgPool{n}d(3, 2, 1, ceil_mode=True, count_include_pad=False)",
        f"nn.MaxPool{n}d(2)", f"nn.MaxPool{n}d(3, 2, padding=1)", f"nn.AdaptiveAvgPool{n}d(1)", f"nn.AdaptiveAvgPool{n}d(2)",
        f"nn.MaxPool{n}d(2, ceil_mode=True)",
    ]), x)  # fmt: skip


def again(g: Grower) -> object:
    """Another call of a module that was called before."""
    if not g.modules:
        return None
    name, shape = g.draw.pick(g.modules)
    fitting = [
        n for n, v in g.values.items() if tuple(v.shape[1:]) == shape[1:] and v.is_floating_point()
    ]
    return g.step(f"self.{name}({g.draw.pick(fitting)})") if fitting else None


def function(g: Grower) -> object:
    x = g.pick(low=1)
    return x and g.step(g.draw.pick(FUNCTIONS).replace("X", x))


FUNCTIONS = (
    "F.relu(X)", "F.relu(X, inplace=True)", "torch.relu(X)", "X.sigmoid()", "torch.tanh(X)", "F.gelu(X)", "F.silu(X, inplace=True)", "X.abs()", "-X",
    "X.clamp(-0.5, 0.5)", "X.clamp(min=0)", "torch.clamp(X, max=0.3)", "F.hardtanh(X, -1.0, 0.5)", "X * torch.sigmoid(X)", "X ** 2", "torch.exp(X * 0.1)",
    "X.softmax(-1)", "F.softmax(X, dim=1)", "F.log_softmax(X, 0)", "X + 1", "2 - X", "X * 0.5", "X / 3", "1.0 / (X.abs() + 1.0)", "torch.sub(X, 0.5, alpha=2)",
    "X.mean(-1)", "X.mean(1, keepdim=True)", "X.sum(0)", "X.amax(-1, keepdim=True)", "X.max(-1)[0]", "torch.max(X, dim=0).values", "X.mean()", "X.norm(dim=-1, keepdim=True)",
    "torch.where(X > 0, X, X * 0.1)", "X.masked_fill(X < 0, -1.0)", "torch.cumsum(X, -1)", "(X > 0.2).to(X.dtype)", "X.argmax(-1).to(X.dtype)", "torch.zeros_like(X) + X",
    "F.leaky_relu(X, 0.2)", "F.dropout(X, 0.5, training=self.training)", "F.normalize(X, dim=-1)", "F.pad(X, (1, 1))", "F.pad(X, (0, 1, 1, 0), value=0.5)", "X.detach()", "X.float().to(X.dtype)",
    "torch.minimum(X, X * 0.5)", "X.square().mean(-1, keepdim=True)", "F.elu(X)", "F.hardswish(X)", "F.layer_norm(X, X.shape[-1:])", "F.interpolate(X, scale_factor=2)",
    "F.interpolate(X, scale_factor=2, mode='bilinear', align_corners=False)", "F.avg_pool2d(X, 2)", "F.max_pool2d(X, 2)", "F.adaptive_avg_pool2d(X, 1)", "torch.rsqrt(X.abs() + 0.5)",
    "F.scaled_dot_product_attention(X, X, X)", "X @ X.transpose(-1, -2)", "torch.einsum('...i,...j->...ij', X, X)", "F.glu(X, 1)", "F.pixel_shuffle(X, 2)", "torch.roll(X, 1, -1)", "X.flip(-1)",
    "torch.stack([X, X * 2], 1)", "torch.cat([X, X], 1)", "torch.cat([X, X.relu()], dim=-1)", "X.repeat_interleave(2, 0)", "F.unfold(X, 2)", "X.clone()", "torch.bmm(X, X.transpose(1, 2))",
    "(X * 2 if isinstance(X, torch.Tensor) else X * 3)", "(X + 1 if torch.is_tensor(X) else X)", "X * 1e-310 * 1e308 * 100", "X / 1e-310 * 1e-310", "X * 1e-39 / 1e-39", "X / 1e300 * 1e300",
    "X / 3e-40 / 1e39", "torch.where(torch.isfinite(X), X, X * 0)", "X.to(torch.float32).to(X.dtype)", "F.batch_norm(X, X.mean(0).flatten()[:1].expand(X.shape[1]), torch.full((X.shape[1],), 1e-12, dtype=X.dtype))",
    "X.expand_as(X)", "X.reshape(1, -1)", "X[:1] * 2", "X.repeat(2, *([1] * (X.dim() - 1)))", "X.tile((2,))", "X.var(-1, keepdim=True)", "X.std(0)", "X.prod(-1)", "X.cumsum(0)", "X.sort(-1)[0]", "X.topk(1, -1)[0]",
)  # fmt: skip

VIEWS = (
    "X.flatten(1)", "torch.flatten(X)", "X.view(X.shape[0], -1)", "X.view(X.size(0), -1)", "X.reshape(X.shape[0], -1)", "X.reshape(-1)", "X.contiguous().view(X.size(0), -1)", "X.contiguous()",
    "X.transpose(1, 2)", "X.transpose(-1, -2)", "X.transpose(0, 1)", "X.permute(0, 2, 1)", "X.permute(0, 2, 3, 1)", "X.permute(0, 3, 1, 2)", "X.permute(0, 2, 3, 1).contiguous()", "X.mT",
    "X.unsqueeze(1)", "X.unsqueeze(-1)", "X[:, None]", "X[..., None]", "X.squeeze()", "X.squeeze(-1)", "X[:, 0]", "X[:, -1]", "X[:, :1]", "X[:, 1:]", "X[:, ::2]", "X[..., 1:]", "X[..., :-1]", "X[0]", "X[:1]",
    "X.chunk(2, 1)[0]", "X.chunk(2, dim=-1)[1]", "torch.split(X, 1, 1)[-1]", "X.unbind(1)[0]", "X.narrow(1, 0, 1)", "X.select(-1, 0)", "X.expand(2, *X.shape)", "X.movedim(1, -1)", "X.view_as(X)", "X.t()",
    "X.unflatten(1, (1, -1))", "X.to(memory_format=torch.channels_last)", "X.index_select(1, torch.tensor([0]))", "X.gather(-1, torch.zeros_like(X[..., :1], dtype=torch.long))", "X.swapaxes(1, -1)", "X.alias() if False else X",
)  # fmt: skip


def view(g: Grower) -> object:
    x = g.pick(low=1)
    return x and g.step(g.draw.pick(VIEWS).replace("X", x))


def sizes(g: Grower) -> object:
    """Views whose sizes are computed from shapes."""
    x = g.pick(3, 4)
    if x is None:
        return None
    draw, shape = g.draw, g.shape(x)
    if len(shape) == 3:
        text = draw.pick([
            "X.view(X.size(0), X.size(1) * X.size(2))", "X.reshape(X.shape[0] * X.shape[1], X.shape[2])", "X.view(X.shape[0], X.shape[1], -1, 1)",
            "torch.zeros(X.shape[0], 1, X.shape[2], dtype=X.dtype) + X[:, :1]", "X.reshape(X.shape[0], 2, X.shape[1] // 2, X.shape[2])",
            "X + torch.arange(X.shape[-1], dtype=X.dtype)", "X.new_ones(X.shape) + X",
        ])  # fmt: skip
    else:
        text = draw.pick([
            "X.view(X.shape[0], X.shape[1], -1)", "X.view(X.shape[0], X.shape[1], X.shape[2] * X.shape[3]).transpose(1, 2)", "X.flatten(2).transpose(1, 2)",
            "X.reshape(X.shape[0], 2, X.shape[1] // 2, *X.shape[2:]).transpose(1, 2).reshape(X.shape)", "F.interpolate(X, size=(X.shape[2] * 2, X.shape[3] + 1))",
            "X[:, : X.shape[1] // 2]", "F.adaptive_avg_pool2d(X, (X.shape[2] // 2, 1))", "X.view(X.shape[0] * X.shape[1], 1, X.shape[2], X.shape[3])",
            "X.permute(0, 2, 3, 1).reshape(X.shape[0], -1, X.shape[1])", "torch.cat([X, torch.zeros(X.shape[0], 1, X.shape[2], X.shape[3], dtype=X.dtype)], 1)",
        ])  # fmt: skip
    return g.step(text.replace("X", x))


def in_place(g: Grower) -> object:
    """A write to memory that other values may share."""
    x = g.pick(low=1)
    if x is None:
        return None
    draw = g.draw
    y = draw.pick(g.like(x))
    text = draw.pick([
        "X.add_(0.5)", "X.mul_(0.5)", "X.relu_()", "X += Y", "X -= 0.25", "X *= 0.5", "X.clamp_(min=0)", "X.sigmoid_()", "X[:, 0] = 0.5", "X[:, :1] += 1", "X[..., 0] *= 2",
        "X[0] = Y[0] * 2", "X.copy_(Y)", "X.zero_()", "X.add_(Y, alpha=0.5)", "torch.relu_(X)", "F.relu(X, inplace=True)", "X.fill_(0.5)", "X.masked_fill_(X < 0, 0.1)",
        "X.view(-1).mul_(0.7)", "X.transpose(0, -1).add_(0.3)", "X.neg_()", "X /= 2", "X.tanh_()", "torch.add(X, Y, out=X) if False else X.add_(Y)", "X.squeeze_()", "X.unsqueeze_(0)",
        "X **= 2", "X //= 0.3", "X %= 0.7", "X += X.shape[-1]", "X *= Y", "X @= X.transpose(-1, -2)", "X.mT.mul_(0.5)", "X.data.add_(1)", "X[X > 0.5] = 0.1",
        "X[0] += Y[0]", "X[:, None] *= 0.5", "X.t().mul_(0.3)", "X[..., -1].neg_()", "V = X.view(-1)\nV += 1", "V = X.data\nV *= 0.5", "N = X.shape[0]\nN += 1\nX *= N",
    ])  # fmt: skip
    if "\n" in text:
        text = text.replace("V", g.name("v")).replace("N", g.name("n"))
    return g.step(text.replace("X", x).replace("Y", y), out=False)


def two(g: Grower) -> object:
    x = g.pick(low=1)
    if x is None:
        return None
    draw = g.draw
    y = draw.pick(g.like(x)) if draw.chance(0.8) else g.pick(low=1)
    return g.step(f"{x} {draw.pick(['+', '+', '+', '*', '-'])} {y}")


def residual(g: Grower) -> object:
    x = g.pick(3, 4, 4)
    if x is None:
        return None
    draw, (_, c, *size) = g.draw, g.shape(x)
    y: str | None = x
    for _ in range(draw.whole(1, 3)):
        n = len(size)
        y = y and g.module(draw.pick([
            f"nn.Conv{n}d({c}, {c}, 3, padding=1)", f"nn.Conv{n}d({c}, {c}, 1, bias=False)", f"nn.BatchNorm{n}d({c})", "nn.ReLU()", f"nn.Conv{n}d({c}, {c}, 3, padding=1, groups={c})",
        ]), y)  # fmt: skip
    return y and g.step(
        draw.pick(
            [
                f"{x} + {y}",
                f"{y} + {x}",
                f"torch.add({y}, {x})",
                f"{y}.add_({x})",
                f"{x}.add({y}, alpha=2)",
            ]
        )
    )


def constant(g: Grower) -> object:
    """A parameter, a buffer, a plain tensor, or a weight that is computed from parameters."""
    x = g.pick(low=1)
    if x is None:
        return None
    draw, shape, name = g.draw, g.shape(x), g.name("k")
    sizes = draw.pick([shape[1:], shape[1:2] + (1,) * (len(shape) - 2), (1,), shape[-1:], shape])
    made = f"torch.rand({', '.join(map(str, sizes)) or '()'}) + 0.5"
    init = draw.pick([
        f"self.{name} = nn.Parameter({made})", f"self.register_buffer('{name}', {made})", f"self.register_buffer('{name}', {made}, persistent=False)",
        f"self.{name} = nn.Parameter({made}, requires_grad=False)",
    ])  # fmt: skip
    text = draw.pick(
        [
            "X * self.K",
            "X + self.K",
            "self.K - X",
            "X / self.K",
            "X * (self.K * 2 + 1)",
            "X * self.K.abs()",
            "torch.where(X > 0, X, self.K)",
            "X + self.K.to(X.dtype)",
        ]
    )
    return g.step(text.replace("X", x).replace("K", name), [init])


def weights(g: Grower) -> object:
    """Functions with weights of the module."""
    x = g.pick(2, 3, 4)
    if x is None:
        return None
    draw, shape, name = g.draw, g.shape(x), g.name("w")
    keep = draw.pick(["nn.Parameter", "torch.Tensor.clone"])
    stored = (
        f"self.{name} = nn.Parameter"
        if keep == "nn.Parameter"
        else f"self.register_buffer('{name}', torch.Tensor.clone"
    )
    close = ")" if keep == "nn.Parameter" else "))"
    if len(shape) == 4 and draw.chance(0.6):
        made = f"torch.randn({draw.pick([2, shape[1]])}, {shape[1]}, 3, 3) * 0.2"
        text = draw.pick(
            [
                "F.conv2d(X, self.W, padding=1)",
                "F.conv2d(X, self.W * 2)",
                "torch.conv2d(X, self.W.flip(-1), None, 1, 1)",
            ]
        )
    else:
        made = f"torch.randn({draw.pick([3, shape[-1]])}, {shape[-1]}) * 0.3"
        text = draw.pick(
            [
                "F.linear(X, self.W)",
                "X @ self.W.t()",
                "torch.matmul(X, self.W.T) + 0.5",
                "F.linear(X, self.W - self.W.mean())",
                "F.linear(X, self.W * self.W.abs())",
            ]
        )
    return g.step(text.replace("X", x).replace("W", name), [f"{stored}({made}{close}"])


def heads(g: Grower) -> object:
    """Modules of several parts, and modules with state."""
    x = g.pick(3, 4)
    if x is None:
        return None
    draw, shape = g.draw, g.shape(x)
    c = shape[1]
    if len(shape) == 3:
        e = shape[-1]
        match draw.pick(["attention", "lstm", "encoder"]):
            case "attention":
                name = g.name("m")
                return g.step(
                    f"self.{name}({x}, {x}, {x}, need_weights=False)[0]",
                    [
                        f"self.{name} = nn.MultiheadAttention({e}, 1, batch_first={draw.chance(0.7)})"
                    ],
                )
            case "lstm":
                name, kind = g.name("m"), draw.pick(["LSTM", "GRU", "RNN"])
                return g.step(
                    f"self.{name}({x})[0]", [f"self.{name} = nn.{kind}({e}, 3, batch_first=True)"]
                )
            case _:
                return g.module(f"nn.TransformerEncoderLayer({e}, 1, 4, batch_first=True)", x)
    name = g.name("m")
    inner = draw.pick(
        [
            f"nn.Conv2d({c}, {c}, 1)",
            f"nn.Sequential(nn.Conv2d({c}, {c}, 3, padding=1), nn.BatchNorm2d({c}), nn.ReLU(inplace=True))",
            f"nn.BatchNorm2d({c})",
            "nn.Identity()",
        ]
    )
    more = draw.pick(["", ", 2.0", ", add=1.5", f", scale={x}.mean()"])
    return g.step(f"self.{name}({x}{more})", [f"self.{name} = Wrapped({inner})"])


def state(g: Grower) -> object:
    """A module or a buffer with state."""
    x = g.pick(low=1)
    if x is None:
        return None
    name = g.name("b")
    return g.draw.pick([
        lambda: g.module("Keeps()", x),
        lambda: g.step(f"self.{name} += 1", [f"self.register_buffer('{name}', torch.zeros(()))"], out=False) is not None and g.step(f"{x} + self.{name}"),
        lambda: g.step(f"self.{name}.copy_({x}.mean())", [f"self.register_buffer('{name}', torch.zeros(()))"], out=False),
        lambda: g.step(f"self.{name} = {x}.mean()", [f"self.{name} = None"], out=False),
    ])()  # fmt: skip


def run(g: Grower) -> object:
    """Linear layers in a row."""
    for _ in range(g.draw.whole(2, 4)):
        g.draw.weighted({conv: 5, norm: 3, constant: 1, pool: 0.5})(g)
    return None


MENU: dict[Entry, float] = {
    conv: 8, run: 4, norm: 5, conv_transpose: 1, linear: 4, module: 5, pool: 2, again: 2, function: 7, view: 5, sizes: 3, in_place: 3.5, two: 3, residual: 4,
    constant: 2.5, weights: 2, heads: 1.5, state: 0.25,
}  # fmt: skip


def torch_case(seed: int) -> Program:
    """The module of a seed."""
    for attempt in range(20):
        draw = Draw(f"torch {seed} {attempt}")
        g = Grower(draw)
        batch = draw.pick([1, 2, 2, 3])
        shapes = [_start(draw, batch)]
        if draw.chance(0.15):
            shapes.append(draw.pick([shapes[0], _start(draw, batch)]))
        inputs = tuple((g.add_input(shape), shape) for shape in shapes)
        for _ in range(draw.pick([1, 3, 6, 10, 16])):
            draw.weighted(MENU)(g)
        if g.steps:
            program = _finished(g, inputs, seed)
            if _runs(program):
                return program
    raise AssertionError(f"seed {seed} gives no module")


def _runs(program: Program) -> bool:
    """Whether the module as a whole runs, twice."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = program.loaded()
            model = names["make"](torch.float64)
            for _ in range(2):
                model(*names["inputs"](torch.float64))
    except Exception:
        return False
    return True


def _start(draw: Draw, batch: int) -> tuple[int, ...]:
    return draw.weighted({
        (batch, draw.pick([1, 2, 3, 4, 6]), draw.whole(4, 8), draw.whole(4, 8)): 7,
        (batch, draw.pick([2, 4]), draw.whole(4, 8)): 3,
        (batch, draw.pick([2, 4, 6])): 2,
        (batch, 2, 4, 4, 4): 0.5,
    })  # fmt: skip


def _finished(g: Grower, inputs: tuple[tuple[str, tuple[int, ...]], ...], seed: int) -> Program:
    draw = g.draw
    made = [n for n in g.values if n.startswith("y")] or [inputs[0][0]]
    text = " ".join(line.partition("=")[2] for step in g.steps for line in step.lines)
    leaves = [
        n
        for n in made
        if f"{n}"
        not in text.replace(",", " ").replace(")", " ").replace("(", " ").replace(".", " ").split()
    ]
    results = (leaves or made[-1:])[-3:]
    if draw.chance(0.2):
        results.append(draw.pick(made))
    if draw.chance(0.03):
        results.append(inputs[0][0])
    if draw.chance(0.05):
        results.append(results[0])
    if len(results) == 1 and draw.chance(0.8):
        returns = results[0]
    else:
        joined = ", ".join(results)
        named = ", ".join(f"'{n}': {n}" for n in results)
        returns = draw.pick(
            [
                f"({joined},)",
                f"({joined},)",
                f"[{joined}]",
                f"{{{named}}}",
                f"({results[0]}, ({joined},), None)",
            ]
        )
    options: list[str] = []
    steps = list(g.steps)
    if draw.chance(0.12):
        name, value = draw.pick(
            [("mask", "None"), ("scale", "1.0"), ("flag", "False"), ("flag", "True"), ("bias", "0")]
        )
        options.append(f"{name}={value}")
        last = results[-1]
        use = {
            "mask": f"{last} = {last} if mask is None else {last} + mask",
            "scale": f"{last} = {last} * scale",
            "flag": f"{last} = {last} * 2 if flag else {last} - 1",
            "bias": f"{last} = {last} + bias",
        }[name]
        from .torch_programs import Step

        steps.append(Step("", (use,)))
    after: list[str] = []
    if g.modules and draw.chance(0.12):
        where = draw.pick(["model", f"model.{draw.pick(g.modules)[0]}"])
        if where != "model" or "," not in returns:
            after.append(
                draw.pick(
                    [
                        f"{where}.register_forward_hook(tripled)",
                        f"{where}.register_forward_pre_hook(shifted)",
                    ]
                )
            )
    if draw.chance(0.08):
        after.append("model.requires_grad_(False)")
    if draw.chance(0.06) and len(inputs[0][1]) == 4:
        after.append("model = model.to(memory_format=torch.channels_last)")
    layers = [
        n
        for n, _ in g.modules
        if any(
            k in line
            for s in steps
            for line in s.init
            for k in ("Conv2d(", "Linear(")
            if line.startswith(f"self.{n} = nn.{k}")
        )
    ]
    if layers and draw.chance(0.08):
        layer = draw.pick(layers)
        after.append(draw.pick([
            f"nn.utils.parametrizations.weight_norm(model.{layer})",
            f"nn.utils.prune.l1_unstructured(model.{layer}, 'weight', 0.5)",
            f"nn.utils.prune.l1_unstructured(model.{layer}, 'weight', 0.5); nn.utils.prune.remove(model.{layer}, 'weight')",
        ]))  # fmt: skip
    return Program(
        seed, inputs, tuple(steps), returns, tuple(options), tuple(after), draw.chance(0.5)
    )
