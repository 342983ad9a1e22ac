"""Random ONNX models and torch modules through the whole compiler, compared with onnxruntime, LiteRT and torch.

``python -m fuzz --seed 123`` (in the folder ``tests``) repeats one seed, ``make fuzz MINUTES=30`` tries as many as fit into the time.

- ``draw`` random choices by seed; ``onnx_graphs``, ``onnx_menu`` and ``onnx_forms`` make ONNX models, ``torch_programs``
  and ``torch_menu`` make modules as source text.
- ``onnx_jobs``, ``torch_jobs``: run a case through a target, and check the result.
- ``verdict``: the outcome of a job: equal, refusal, mismatch, crash or hang; tells rounding errors from mismatches.
- ``onnx_minimise``, ``torch_minimise``: the smallest case that still fails in the same way.
- ``trial``: one seed from beginning to end; ``farm``: many seeds in worker processes that may crash; ``findings``: failing cases on disk.
"""
