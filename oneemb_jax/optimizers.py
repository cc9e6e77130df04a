"""The optimizers of tables; each function makes a frozen :class:`Optimizer`.

``update`` applies them, fused with the sum of the gradients, by the formulas of
xla_ffi/core/optimizer_math.h. In the formulas here, ``g`` is the gradient of a
row, summed over the batch and scaled; ``lr`` the learning rate; ``t`` the number
of updates of the table, this one included. A row that no id of the batch asked
for does not move, whatever its momentum or weight decay.

The learning rate is a number, or a schedule as in optax: a function of the
number of updates done before, traced. A number is carried by the table as data,
so that tables which differ in it share compiled code; ``update`` takes another
one for a single step. ``weight_decay`` joins the gradient, ``g + weight_decay *
w``; ``decoupled``, it is a step of its own, ``w -= lr * weight_decay * w``.
"""

from __future__ import annotations

from oneemb_jax.optimizer import Optimizer as Optimizer
from oneemb_jax.optimizer import Schedule


def sgd(
    learning_rate: float | Schedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    *,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """Stochastic gradient descent: ``w -= lr * g``.

    With momentum, ``m = momentum * m + g; w -= lr * m``, and by Nesterov's rule
    ``w -= lr * (g + momentum * m)``: OneFlow's and PyTorch's, without dampening.
    State: ``momentum``, if there is any.

    Args:
        learning_rate: a number or a schedule.
        momentum: in [0, 1).
        nesterov: whether to look ahead; needs a momentum.
        weight_decay: 0 or more.
        decoupled: whether the decay is a step of its own.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.sgd(0.1, momentum=0.9)
        sgd(learning_rate=0.1, momentum=0.9)
        >>> oe.sgd(0.1) == oe.sgd(0.2), oe.sgd(0.1) == oe.sgd(lambda step: 0.1)
        (True, False)
    """
    return Optimizer(
        "sgd",
        learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


def adam(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    bias_correction: bool = True,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """Adam (Kingma and Ba, 2015), as in OneFlow.

    ``m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g**2;
    w -= (lr / c1) * m / (sqrt(v) / sqrt(c2) + eps)``, where ``c = 1 - beta**t``
    counts the updates of the table, not of the row. State: ``m``, ``v``.

    Args:
        learning_rate: a number or a schedule.
        beta1: in [0, 1).
        beta2: in [0, 1).
        eps: above 0.
        bias_correction: False means c1 = c2 = 1.
        weight_decay: 0 or more.
        decoupled: whether the decay is a step of its own, as in ``adamw``.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.adam(1e-3).state_fields
        ('m', 'v')
    """
    return Optimizer(
        "adam",
        learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        bias_correction=bias_correction,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


def adamw(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    bias_correction: bool = True,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Args:
        learning_rate: a number or a schedule.
        beta1: in [0, 1).
        beta2: in [0, 1).
        eps: above 0.
        bias_correction: as in ``adam``.
        weight_decay: 0 or more. It reaches a row only in the updates that touch it.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.adamw(weight_decay=0.1) == oe.adam(weight_decay=0.1, decoupled=True)
        True
    """
    return adam(
        learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        bias_correction=bias_correction,
        weight_decay=weight_decay,
        decoupled=True,
    )


def amsgrad(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    bias_correction: bool = True,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """AMSGrad (Reddi, Kale and Kumar, 2018), as in PyTorch.

    Adam with ``v_max = max(v_max, v)`` in the place of ``v`` in the step. State:
    ``m``, ``v``, ``v_max``.

    Args:
        learning_rate: a number or a schedule.
        beta1: in [0, 1).
        beta2: in [0, 1).
        eps: above 0.
        bias_correction: as in ``adam``.
        weight_decay: 0 or more.
        decoupled: whether the decay is a step of its own.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.amsgrad(1e-3).size_factor
        4
    """
    return Optimizer(
        "amsgrad",
        learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        bias_correction=bias_correction,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


def adagrad(
    learning_rate: float | Schedule,
    *,
    lr_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """Adagrad (Duchi, Hazan and Singer, 2011), as in OneFlow and PyTorch.

    ``lr_t = lr / (1 + (t - 1) * lr_decay); sum += g**2;
    w -= lr_t / (sqrt(sum) + eps) * g``. State: ``sum``.

    Args:
        learning_rate: a number or a schedule.
        lr_decay: 0 or more.
        initial_accumulator_value: what ``sum`` begins with, 0 or more.
        eps: above 0.
        weight_decay: 0 or more.
        decoupled: whether the decay is a step of its own.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.adagrad(0.05)
        adagrad(learning_rate=0.05, eps=1e-10)
    """
    return Optimizer(
        "adagrad",
        learning_rate,
        lr_decay=lr_decay,
        initial_accumulator_value=initial_accumulator_value,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


def rowwise_adagrad(
    learning_rate: float | Schedule,
    *,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> Optimizer:
    """Adagrad with one accumulator a row, as in FBGEMM.

    ``sum += mean(g**2); w -= lr / (sqrt(sum) + eps) * g``, the mean taken over the
    columns. One word of state a row: ``sum``.

    Args:
        learning_rate: a number or a schedule.
        initial_accumulator_value: what ``sum`` begins with, 0 or more.
        eps: above 0.
        weight_decay: 0 or more.
        decoupled: whether the decay is a step of its own.

    Example:
        >>> import oneemb_jax as oe
        >>> opt = oe.rowwise_adagrad(0.05)
        >>> opt.num_state_fields, opt.num_row_words
        (0, 1)
    """
    return Optimizer(
        "rowwise_adagrad",
        learning_rate,
        initial_accumulator_value=initial_accumulator_value,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


def ftrl(
    learning_rate: float | Schedule = 1e-3,
    *,
    weight_decay: float = 0.0,
    lr_power: float = -0.5,
    initial_accumulator_value: float = 0.1,
    lambda1: float = 0.0,
    lambda2: float = 0.0,
    beta: float = 0.0,
) -> Optimizer:
    """Follow the regularized leader (McMahan et al., 2013), as in OneFlow.

    ``new = sum + g**2; sigma = (new**lr_power - sum**lr_power) / lr; sum = new;
    z += g - sigma * w; w = 0`` where ``abs(z) < lambda1``, else
    ``w = (sign(z) * lambda1 - z) / ((beta + new**lr_power) / lr + lambda2)``.
    State: ``sum``, ``z``. A learning rate of 0 leaves rows as they are.

    The power is taken as it stands. The paper's algorithm, whose steps shrink as
    gradients add up, is ``lr_power=0.5``; the default is OneFlow's.

    Args:
        learning_rate: a number or a schedule.
        weight_decay: 0 or more; coupled.
        lr_power: any power; 0.5 and -0.5 are the fastest.
        initial_accumulator_value: what ``sum`` begins with, above 0.
        lambda1: 0 or more; weights whose ``z`` stays below it are exactly 0.
        lambda2: 0 or more.
        beta: 0 or more.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.ftrl(0.1, lr_power=0.5, lambda1=1.0).state_fields
        ('sum', 'z')
    """
    return Optimizer(
        "ftrl",
        learning_rate,
        weight_decay=weight_decay,
        lr_power=lr_power,
        initial_accumulator_value=initial_accumulator_value,
        lambda1=lambda1,
        lambda2=lambda2,
        beta=beta,
    )


def smart_decay_adam(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam that makes up for the updates a row was not in (Caffe2, OneFlow).

    After ``k - 1`` updates without the row, ``m`` and ``v`` decay ``k`` times, and
    the steps that ``m`` would have made are taken at once: ``catchup = m * (beta1 +
    ... + beta1**(k-1)); m = beta1**k * m + (1 - beta1) * g; v = beta2**k * v +
    (1 - beta2) * g**2; w -= lr * (m + catchup) / (sqrt(v) + eps)``. No bias
    correction. State: ``m``, ``v`` and, once a row, ``last_step``.

    Args:
        learning_rate: a number or a schedule.
        beta1: in [0, 1).
        beta2: in [0, 1).
        eps: above 0.
        weight_decay: 0 or more; coupled.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.smart_decay_adam().row_fields
        (('last_step', <class 'numpy.uint32'>),)
    """
    return Optimizer(
        "smart_decay_adam",
        learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
    )


def lamb(
    learning_rate: float | Schedule = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    bias_correction: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """LAMB (You et al., 2020), with a row in the place of a layer.

    With ``m`` and ``v`` of Adam, ``u = (m / c1) / (sqrt(v) / sqrt(c2) + eps) +
    weight_decay * w; w -= lr * norm(w) / norm(u) * u``; the ratio is 1 where one of
    the norms is 0. State: ``m``, ``v``.

    Args:
        learning_rate: a number or a schedule.
        beta1: in [0, 1).
        beta2: in [0, 1).
        eps: above 0.
        bias_correction: as in ``adam``.
        weight_decay: 0 or more; a part of ``u``.

    Example:
        >>> import oneemb_jax as oe
        >>> oe.lamb(0.01, weight_decay=0.1).size_factor
        3
    """
    return Optimizer(
        "lamb",
        learning_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        bias_correction=bias_correction,
        weight_decay=weight_decay,
    )
