"""Random ONNX models and torch modules through the whole compiler, held against the runtimes that the models came from.

``python -m fuzz --seed 123`` (in the folder ``tests``) repeats one seed, ``make fuzz MINUTES=30`` tries as many as there is time for.

- ``draw`` random choices by seed; ``onnx_graphs``, ``onnx_menu`` and ``onnx_forms`` make ONNX models, ``torch_programs``
  and ``torch_menu`` make modules as source text.
- ``onnx_jobs``, ``torch_jobs``: what is done with a case, and what must be true of the result.
- ``verdict``: equal, refusal, mismatch, crash or hang; what rounding alone explains.
- ``onnx_minimise``, ``torch_minimise``: the smallest case that still fails in the same way.
- ``trial``: one seed from beginning to end; ``farm``: many seeds in worker processes that may die; ``findings``: what is kept on disk.
"""
