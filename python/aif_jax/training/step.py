"""One training step as one compiled program, and the diagnosis of a step that is not finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from aif_jax.models.blocks.base import UserSide
from aif_jax.models.blocks.encoder import SequenceEncoder
from aif_jax.training.config import TrainConfig
from aif_jax.training.losses import (
    distillation_loss,
    in_batch_softmax_loss,
    log_odds_shift,
    next_item_loss,
    sigmoid_loss,
)
from aif_jax.training.optimiser import Rates, optimiser, rates_of
from aif_jax.training.parameters import Parameters, Params, non_finite

Batch = Mapping[str, Any]
TrainState = dict[str, Any]
"""State that a step changes: the vector ``params``, ``optimiser``, ``step``, the epoch's ``loss_sum``, and
``ok``: False from the first step whose loss or gradient was not finite, after which nothing changes."""

LOG_Q = "#log_q"
"""Column of the catalogue: the log of each item's share of the positives. It is not an identifier, so no
feature can have this name."""


class Step:
    """The compiled step of one run.

    Args:
        parameters: of the model that is trained.
        config: of the run.
        heads: number of logits.
        steps: length of the whole run, at whose end the schedule ends.
    """

    def __init__(
        self,
        parameters: Parameters,
        config: TrainConfig,
        heads: int,
        steps: int,
    ) -> None:
        self.parameters = parameters
        self.config = config
        self.heads = heads
        # Operands, so that runs that differ in seed and rates alone are one program, compiled once where a
        # compilation cache is on.
        self._key = jax.random.key(config.seed)
        self._rates = rates_of(config, steps)
        self._run = jax.jit(self._step, donate_argnums=0)
        self._gradients = jax.jit(self._loss_and_gradients)

    def start(self) -> TrainState:
        """Return the state before the first step."""
        return jax.jit(self._start)(self.parameters.initial)

    def _start(self, initial: Params) -> TrainState:
        params = self.parameters.join(initial)
        return {
            "params": params,
            "optimiser": self._optimiser(self._rates).init(params),
            "step": jnp.zeros((), jnp.int32),
            "loss_sum": jnp.zeros((), jnp.float32),
            "ok": jnp.array(True),
        }

    def _optimiser(self, rates: Rates) -> optax.GradientTransformation:
        return optimiser(rates, dense=self.parameters.dense, embedding=self.parameters.embedding)

    def __call__(self, state: TrainState, batch: Batch, catalogue: Batch) -> tuple[TrainState, jax.Array]:
        """Make one step.

        Args:
            state: is donated and must not be used again.
            batch: see `aif_jax.data.batching`.
            catalogue: on the device; with `LOG_Q` float32 ``[n_items]`` where the softmax is trained.

        Returns:
            The next state, and float32 ``[2]``: the loss, and whether it and its gradients are finite. The
            call does not wait for either.
        """
        return self._run(state, batch, catalogue, self._key, self._rates)

    def _loss(
        self, params: Params, step: jax.Array, batch: Batch, catalogue: Batch, key: jax.Array
    ) -> jax.Array:
        config = self.config
        model: Any = self.parameters.merge(params)
        if config.rematerialise:
            encoder = getattr(getattr(model, "user", None), "encoder", None)
            if isinstance(encoder, SequenceEncoder):
                encoder.rematerialise = True
        # Random numbers depend on seed and step alone: a resumed run draws those of an unbroken one.
        rngs = nnx.Rngs(jax.random.fold_in(key, step))
        following: jax.Array | float = 0.0
        if config.next_weight:
            logits, side = model.logits_and_side(batch, catalogue, train=True, rngs=rngs)
            following = _next_item_loss(batch, side)
        else:
            logits = model(batch, catalogue, train=True, rngs=rngs)
        shift = log_odds_shift(config.negative_keep_rate)
        weights = jnp.asarray(config.head_weights or (1.0,) * self.heads, jnp.float32)
        loss = jnp.sum(weights * sigmoid_loss(logits, batch["labels"], batch["label_mask"], shift=shift))
        if config.distils:
            apart = distillation_loss(
                logits,
                batch["teacher"],
                batch["teacher_mask"],
                pointwise=config.distillation_weight,
                listwise=config.distillation_list_weight,
            )
            loss += jnp.sum(weights * apart)
        if config.softmax_weight:
            loss += config.softmax_weight * self._softmax(model, batch, catalogue)
        return loss + config.next_weight * following

    def _softmax(self, model: Any, batch: Batch, catalogue: Batch) -> jax.Array:
        """In-batch softmax over the first positive of each request, by the first head."""
        positive = (batch["labels"][..., 0] > 0.5) & (batch["label_mask"][..., 0] > 0)
        first = jnp.argmax(positive, axis=1)
        rows = jnp.take_along_axis(batch["item"], first[:, None], axis=1)[:, 0]
        safe = jnp.maximum(rows, 0)
        log_q = catalogue[LOG_Q]
        same = safe % log_q.shape[0]  # in every fold
        return in_batch_softmax_loss(
            model.user_vector(batch, catalogue),
            model.item_vector({name: column[safe] for name, column in catalogue.items() if name != LOG_Q}),
            same,
            log_q[same],
            jnp.any(positive, axis=1).astype(jnp.float32),
            temperature=self.config.softmax_temperature,
        )

    def _loss_and_gradients(
        self, params: Params, step: jax.Array, batch: Batch, catalogue: Batch, key: jax.Array
    ) -> tuple[jax.Array, Params]:
        return jax.value_and_grad(self._loss)(params, step, batch, catalogue, key)

    def _step(
        self, state: TrainState, batch: Batch, catalogue: Batch, key: jax.Array, rates: Rates
    ) -> tuple[TrainState, jax.Array]:
        old = state["params"]
        loss, gradients = self._loss_and_gradients(
            self.parameters.split(old), state["step"], batch, catalogue, key
        )
        gradient = self.parameters.join(gradients)
        ok = state["ok"] & jnp.isfinite(loss) & jnp.isfinite(jnp.vdot(gradient, gradient))
        updates, moments = self._optimiser(rates).update(gradient, state["optimiser"], old)
        # Steps run ahead of the host; after a failing step, all keep the weights that it started from.
        following = {
            "params": jnp.where(ok, old + updates, old),
            "optimiser": jax.tree.map(lambda a, b: jnp.where(ok, a, b), moments, state["optimiser"]),
            "step": state["step"] + ok.astype(jnp.int32),
            "loss_sum": state["loss_sum"] + jnp.where(ok, loss, jnp.zeros_like(loss)),
            "ok": ok,
        }
        return following, jnp.stack([loss, ok.astype(jnp.float32)])

    def explain(self, state: TrainState, batch: Batch, catalogue: Batch) -> str:
        """Return why the step after `state` is not finite, from inputs, weights and gradients in this order.

        Args:
            state: of a run that stopped, so with the weights before the failing step.
            batch: the batch of that step.
            catalogue: as trained with.
        """
        if guilty := non_finite({**batch, "catalogue": catalogue}):
            return (
                f"not finite in the batch: input {_some(guilty)}. Correct the data, or the schema's encoding."
            )
        params = self.parameters.split(state["params"])
        if guilty := non_finite(params):
            return f"not finite before the step: parameter {_some(guilty)}. Lower learning_rate."
        loss, gradients = self._gradients(params, state["step"], batch, catalogue, self._key)
        sizes = {name: float(jnp.max(jnp.abs(value))) for name, value in params.items()}
        largest = max(sizes, key=sizes.__getitem__)
        guilty = non_finite(gradients)
        return (
            f"all inputs are finite, the loss is {float(loss)}, and "
            + (
                f"not finite is the gradient of {_some(guilty)}"
                if guilty
                else "the gradients' norm overflows"
            )
            + f". The largest weight is {sizes[largest]:.3g}, in {largest}. Lower learning_rate (now "
            f"{self.config.learning_rate:g}), or set clip_norm (now {self.config.clip_norm:g})."
        )


def _next_item_loss(batch: Batch, side: UserSide) -> jax.Array:
    """Return the loss of the encoder's outputs against what follows in the batch's windows."""
    items, pool = jnp.asarray(batch["sequence_item"]), jnp.asarray(batch["sequence_pool"])
    after = items[:, 1:]
    return next_item_loss(
        side.own["encoder"].places[:, :-1],
        side.sequence["event"][:, 1:],
        side.sequence["pool"],
        after[..., None] != pool[:, None],
        after >= 0,
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
