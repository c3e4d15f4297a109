"""Models, losses, optimizers and refreshes as an experiment would bring them, good ones and bad ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipjax.models.dual_encoder import DualEncoder

PLACES, WIDTH = 16, 16
CALLS = []


class Remembering(DualEncoder):
    """A queue of texts, a running mean, and a momentum copy of the scale: none of them trains."""

    def setup(self):
        super().setup()
        self.queue = self.param("queue", nn.initializers.zeros, (PLACES, WIDTH))
        self.centre = self.param("centre", nn.initializers.zeros, (WIDTH,))
        self.slow_scale = self.param("slow_scale", nn.initializers.zeros, ())
        self.number = self.param("number", lambda _: jnp.int32(3))

    def __call__(self, batch, *, train=False):
        CALLS.append(train)
        return super().__call__(batch, train=train) | {"queue": self.queue}

    def whole_batch(self, outputs, batch, *, train):
        new = 0.5 * self.centre + 0.5 * outputs["image_embedding"].mean(0)
        if train:
            self.put_variable("updates", "centre", new)
        centred = outputs["image_embedding"] - jax.lax.stop_gradient(new)
        return outputs | {"centred": centred}


class Normed(DualEncoder):
    """A projector with a hand-made batch norm, where it is allowed: over the whole batch."""

    def setup(self):
        super().setup()
        self.projector = nn.Dense(8)

    def whole_batch(self, outputs, batch, *, train):
        x = self.projector(outputs["image_embedding"])
        x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-3)
        return outputs | {"projected": x}


class Coupled(DualEncoder):
    """The same mean where it is not allowed; behind a gate that is closed at first."""

    def setup(self):
        super().setup()
        self.gate = self.param("gate", nn.initializers.zeros, ())

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        x = outputs["image_embedding"]
        return outputs | {"image_embedding": x - self.gate * x.mean(0)}


class Means(DualEncoder):
    """Global outputs that are constant, or a mean over samples."""

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        x = outputs["image_embedding"]
        return outputs | {"mean_square": (x**2).mean(0), "one": jnp.ones(3)}


class Products(DualEncoder):
    """A global output that is no mean over samples."""

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        return outputs | {"product": (outputs["image_embedding"].mean(0)) ** 2}


class Late(DualEncoder):
    """Makes a parameter in training only."""

    @nn.compact
    def late(self, x):
        return nn.Dense(3, name="late")(x)

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        return outputs | ({"late": self.late(outputs["image_embedding"])} if train else {})


class RowUpdates(Remembering):
    """Updates from the rows it sees, by the reserved output."""

    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        return outputs | {"updates": {"slow_scale": outputs["image_embedding"].mean()}}


class Broken(DualEncoder):
    def __call__(self, batch, *, train=False):
        return super().__call__(batch, train=train)["image_embedding"] @ jnp.zeros((3, 3))


class Tuple(DualEncoder):
    def __call__(self, batch, *, train=False):
        outputs = super().__call__(batch, train=train)
        return tuple(outputs.values()) if train else outputs


class Needy(DualEncoder):
    """Cannot train without labels."""

    needs = ("image", "labels")


class Asks(DualEncoder):
    def __call__(self, batch, *, train=False):
        return super().__call__(batch, train=train) | {"odd": batch["lables"]}


def queue_loss(outputs, batch, samples):
    """No gradient but by the texts; the queue takes this batch's texts, and `samples` is told."""
    text = outputs["text_embedding"]
    new = jnp.concatenate([jax.lax.stop_gradient(text), outputs["queue"]])[:PLACES]
    return jnp.mean(outputs["queue"] @ text.T), {"samples": samples}, {"queue": new}


def centred_loss(outputs, batch):
    return jnp.mean(outputs["centred"] ** 2 * jnp.arange(16)), {}


def text_queue(outputs, batch):
    return jnp.mean(outputs["queue"] @ outputs["text_embedding"].T), {}


def text_loss(outputs, batch):
    return jnp.mean(outputs["text_embedding"] ** 3), {}


def projected_loss(outputs, batch):
    x = outputs["projected"]
    return jnp.mean(x**3 * jnp.arange(8)), {"size": jnp.mean(x**2)}


def bad_loss(outputs, batch, *, how="nothing"):
    scale = outputs["logit_scale"]
    fine = jnp.mean(outputs["image_embedding"])
    if how == "fails":
        return jnp.zeros((2, 3)) @ jnp.zeros((2, 3)), {}
    return {
        "one": lambda: fine,
        "four": lambda: (fine, {}, {}, {}),
        "vector": lambda: (outputs["image_embedding"], {}),
        "integer": lambda: (jnp.int32(3), {}),
        "metrics": lambda: (fine, [fine]),
        "metric": lambda: (fine, {"odd": outputs["image_embedding"]}),
        "taken": lambda: (fine, {"loss": fine}),
        "output": lambda: (jnp.mean(outputs["imege_embedding"]), {}),
        "field": lambda: (fine, {"labels": batch["labels"]}),
        "write": lambda: outputs.update(x=scale),
        "trained": lambda: (fine, {}, {"logit_scale": scale}),
        "unknown": lambda: (fine, {}, {"queu": scale}),
        "shape": lambda: (fine, {}, {"queue": scale}),
        "dtype": lambda: (fine, {}, {"slow_scale": scale.astype(jnp.bfloat16)}),
        "twice": lambda: (fine, {}, {"centre": jnp.zeros(WIDTH)}),
        "follows": lambda: (fine, {}, {"slow_scale": scale}),
    }[how]()


def odd_arguments(out, batch):
    return jnp.float32(0), {}


def signs(config, trained, *, size=1.0):
    """An optimizer: the sign of the gradient."""
    return optax.stateless(lambda g, _: jax.tree.map(lambda x: size * jnp.sign(x), g))


def no_optimizer(config, trained):
    return "adam"


def linear(*, peak, total, warmup, batch_size, final):
    return lambda step: peak * (1.0 - jnp.float32(step) * batch_size / total)


def no_schedule(*, peak, total, warmup, batch_size, final):
    return lambda step: jnp.zeros(3)


def centres(params, encoder, samples, rng, *, source, scale=1.0):
    """A table made of texts' embeddings, the number of samples, and chance."""
    texts = [source[i]["name"] for i in range(PLACES)]
    found = encoder.texts(params, texts)
    noise = jax.random.normal(rng, found.shape)
    assert samples == 0 or np.any(np.asarray(params["queue"]))
    return {"queue": np.asarray(scale * found + noise + samples, np.float32)}


def bad_refresh(params, encoder, samples, rng, *, how):
    if how == "fails":
        raise ZeroDivisionError("nothing to divide")
    return {
        "list": [1],
        "trained": {"logit_scale": np.float32(0)},
        "shape": {"queue": np.zeros((3, 3), np.float32)},
    }[how]


def odd_refresh(params, encoder):
    return {}


def counted(params, encoder, samples, rng):
    """A refresh that changes an integer, from what it was and from the run's own randomness."""
    return {"number": np.int32(params["number"] + samples + jax.random.randint(rng, (), 0, 100))}
