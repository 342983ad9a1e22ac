"""External data is streamed: memory follows the largest tensor, not the model.

``GRAPHSHRINK_LARGE=1`` runs it on 3 GB; by default the same model is 384 MB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

LARGE = os.environ.get("GRAPHSHRINK_LARGE") == "1"
SIDE = 11_264 if LARGE else 4_096
LAYERS = 6


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_follows_the_largest_tensor(tmp_path: Path) -> None:
    source, out = tmp_path / "in" / "m.onnx", tmp_path / "out" / "m.onnx"
    source.parent.mkdir()
    out.parent.mkdir()
    size = SIDE * SIDE * 4
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    with (source.parent / "m.data").open("wb") as file:
        file.truncate(size * LAYERS)
        for i in range(LAYERS):
            # One block of numbers in a sparse file: the rest is zeros that take no disk.
            file.seek(i * size)
            file.write(rng.uniform(0.5, 1.5, SIDE).astype(np.float32).tobytes())
            weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "m.data"), ("offset", i * size), ("length", size)):
                weight.external_data.add(key=key, value=str(value))
            scale = numpy_helper.from_array(rng.uniform(0.5, 1.5, SIDE).astype(np.float32), f"s{i}")
            tensors += [weight, scale]
            nodes += [
                helper.make_node("Gemm", [f"v{i}", f"w{i}"], [f"g{i}"], transB=1),
                helper.make_node("Mul", [f"g{i}", f"s{i}"], [f"m{i}"]),
                helper.make_node("Relu", [f"m{i}"], [f"v{i + 1}"]),
            ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("v0", TensorProto.FLOAT, [1, SIDE])],
        [helper.make_tensor_value_info(f"v{LAYERS}", TensorProto.FLOAT, [1, SIDE])],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source.write_bytes(made.SerializeToString())
    code = (
        "import sys; from graphshrink.cli import main\n"
        f"sys.argv = ['graphshrink', {str(source)!r}, {str(out)!r}]\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        # Unlike ru_maxrss, this starts anew with the process.
        "print(next(s.split()[1] for s in open('/proc/self/status') if s.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary, kilobytes = done.stdout.strip().splitlines()
    peak = int(kilobytes) * 1024
    assert f"{3 * LAYERS} -> {2 * LAYERS} nodes" in summary
    assert peak < 3 * size + 400 * 10**6, f"peak {peak:,} bytes, largest tensor {size:,}"
    if not LARGE:
        x = rng.uniform(0.5, 1.5, (1, SIDE)).astype(np.float32)
        first, second = (
            onnxruntime.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(
                None, {"v0": x}
            )[0]
            for p in (source, out)
        )
        assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()
        assert np.abs(first).max() > 0
    for file in (source.parent / "m.data", *out.parent.iterdir()):
        file.unlink()
