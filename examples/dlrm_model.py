"""The dense half of a DLRM (Naumov et al., 2019) as pure functions.

A bottom MLP turns the dense features into a vector as long as an embedding; the
dot products of that vector and the embeddings, each with each, are the
interactions; a top MLP turns the vector and the interactions into one logit.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Layer = dict[str, jax.Array]  # weight f32[inputs, outputs], bias f32[outputs]
Params = dict[str, list[Layer]]


def init_params(
    key: jax.Array,
    num_dense: int,
    num_tables: int,
    embedding_dim: int,
    bottom: Sequence[int],
    top: Sequence[int],
) -> Params:
    """Draws the weights of both MLPs.

    Args:
        key: A JAX random key.
        num_dense: Dense features of a sample.
        num_tables: Embeddings of a sample.
        embedding_dim: Width of an embedding; the bottom MLP ends with it.
        bottom: Widths of the bottom MLP's hidden layers.
        top: Widths of the top MLP's hidden layers; one logit follows.

    Returns:
        {"bottom": layers, "top": layers}.
    """
    bottom_key, top_key = jax.random.split(key)
    pairs = num_tables * (num_tables + 1) // 2
    return {
        "bottom": _init_mlp(bottom_key, [num_dense, *bottom, embedding_dim]),
        "top": _init_mlp(top_key, [embedding_dim + pairs, *top, 1]),
    }


def forward(params: Params, acts: jax.Array, dense: jax.Array) -> jax.Array:
    """Predicts the logit of a click.

    Args:
        params: What `init_params` made.
        acts: Embeddings, f32[batch, tables, dim].
        dense: Raw counts, f32[batch, features].

    Returns:
        f32[batch].
    """
    features = jnp.log1p(jnp.maximum(dense, 0.0))
    vector = _mlp(params["bottom"], features, last=jax.nn.relu)
    points = jnp.concatenate([vector[:, None, :], acts], axis=1)
    dots = jnp.einsum("bid,bjd->bij", points, points)
    rows, columns = np.tril_indices(points.shape[1], k=-1)
    inputs = jnp.concatenate([vector, dots[:, rows, columns]], axis=1)
    return _mlp(params["top"], inputs, last=None)[:, 0]


def loss_and_logits(
    params: Params, acts: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean binary cross-entropy, and the logits f32[batch]."""
    logits = forward(params, acts, batch["dense"])
    # log(1 + exp(x)) - y x, which neither overflows nor loses small terms.
    losses = jax.nn.softplus(logits) - batch["label"] * logits
    return losses.mean(), logits


def _init_mlp(key: jax.Array, widths: Sequence[int]) -> list[Layer]:
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {
            "weight": jnp.sqrt(2.0 / (inputs + outputs))
            * jax.random.normal(layer_key, (inputs, outputs)),
            "bias": jnp.zeros((outputs,)),
        }
        for layer_key, inputs, outputs in zip(keys, widths, widths[1:], strict=False)
    ]


def _mlp(layers: Sequence[Layer], x: jax.Array, last: Any) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
    x = x @ layers[-1]["weight"] + layers[-1]["bias"]
    return x if last is None else last(x)
