"""FBGEMM's table-batched embeddings on CPU, the optimizer fused."""

import os

import numpy as np
import torch
from cells import EPS, INITIAL_ACCUMULATOR, LEARNING_RATE, Batches, Cell
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    EmbeddingLocation,
    PoolingMode,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

torch.set_num_threads(len(os.sched_getaffinity(0)))

_OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
}


class Fbgemm:
    """One table, bags of one id, summed: its fastest path for plain rows."""

    dense = False

    def __init__(self, cell: Cell, batches: Batches) -> None:
        self._batches = batches
        self._ids = [torch.from_numpy(b) for b in batches.ids]
        self._offsets = torch.arange(cell.ids + 1)
        self._grads = torch.from_numpy(batches.grads)
        self._acts: torch.Tensor | None = None
        self._table = SplitTableBatchedEmbeddingBagsCodegen(
            [(cell.rows, cell.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
            optimizer=_OPTIMIZERS[cell.optimizer],
            learning_rate=LEARNING_RATE,
            eps=EPS,
            weights_precision=SparseType.FP32,
            output_dtype=SparseType.FP32,
            pooling_mode=PoolingMode.SUM,
            stochastic_rounding=False,
        )
        self._table.init_embedding_weights_uniform(-0.05, 0.05)
        if cell.optimizer == "adagrad":
            for state in self._table.split_optimizer_states():
                state[0].fill_(INITIAL_ACCUMULATOR)

    def _forward(self, k: int) -> torch.Tensor:
        return self._table(self._ids[self._batches.pick(k)], self._offsets)

    def lookup(self, k: int) -> None:
        """Reads without recording a graph."""
        with torch.no_grad():
            self._forward(k)

    def prepare(self, k: int) -> None:
        """The forward pass that `update` goes back through."""
        self._acts = self._forward(k)

    def update(self, k: int) -> None:
        """The backward pass, which applies the optimizer."""
        if self._acts is None:
            raise RuntimeError(f"update({k}) before prepare({k})")
        acts, self._acts = self._acts, None
        acts.backward(self._grads)

    def step(self, k: int) -> None:
        """Both passes."""
        self._forward(k).backward(self._grads)

    def activations(self, k: int) -> np.ndarray:
        """The rows of batch `k`."""
        with torch.no_grad():
            return self._forward(k).numpy()

    def weights(self) -> np.ndarray:
        """All rows."""
        (table,) = self._table.split_embedding_weights()
        return table.detach().numpy().copy()

    def close(self) -> None:
        """Nothing to do: memory goes with the object."""
