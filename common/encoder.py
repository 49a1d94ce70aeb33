"""IMPALA's encoder of images, as FQL's and DROL's reference implementations have it ('impala_small').

Of each stage: a convolution, a max-pool that halves height and width, and a residual block of two convolutions. Then a
Linear layer and GELU. No norms, no dropout; what goes in is divided by 255.
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num, Shaped

glorot_uniform = jax.nn.initializers.glorot_uniform()
BEYOND_LAYERS = 2**16  # of what is split off the key of an MLP: its layers, and the members of an ensemble


class Convolution(eqx.Module):
    """3 x 3, stride 1, zeros around the image, so that it keeps its size."""

    kernel: Float[Array, "3 3 in out"]
    bias: Float[Array, " out"]

    def __init__(self, in_channels: int, out_channels: int, *, key: Key[Array, ""]):
        self.kernel = glorot_uniform(key, (3, 3, in_channels, out_channels))
        self.bias = jnp.zeros(out_channels)

    def __call__(self, x: Float[Array, "batch height width in"]) -> Float[Array, "batch height width out"]:
        """Convolve images."""
        # In a compiled loop XLA's own takes a CPU ten times as long (jax issue 12868). A GPU has cuDNN's.
        convolve = product_of_patches if jax.default_backend() == "cpu" else convolution
        return convolve(x, self.kernel) + self.bias


def convolution(
    x: Float[Array, "batch height width in"], kernel: Float[Array, "3 3 in out"]
) -> Float[Array, "batch height width out"]:
    """XLA's own."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def product_of_patches(
    x: Float[Array, "batch height width in"], kernel: Float[Array, "3 3 in out"]
) -> Float[Array, "batch height width out"]:
    """The same as a product of matrices: the nine shifted images side by side in the channels, and the kernel."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i, j in itertools.product(range(3), range(3))]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def max_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch half_height half_width channels"]:
    """3 x 3, stride 2, as Flax's 'SAME': where the size is even, one row and column more at the end, none before."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


class Stage(eqx.Module):
    """Half as high and wide as what goes in."""

    first: Convolution
    block: list[Convolution]

    def __init__(self, in_channels: int, out_channels: int, *, key: Key[Array, ""]):
        keys = jax.random.split(key, 3)
        self.first = Convolution(in_channels, out_channels, key=keys[0])
        self.block = [Convolution(out_channels, out_channels, key=k) for k in keys[1:]]

    def __call__(
        self, x: Float[Array, "batch height width in"]
    ) -> Float[Array, "batch half_height half_width channels"]:
        """Apply it."""
        pooled = x = max_pool(self.first(x))
        for convolve in self.block:
            x = convolve(jax.nn.relu(x))
        return x + pooled


class Encoder(eqx.Module):
    """Of images [height, width, channels], uint8: what they are to an MLP."""

    stages: list[Stage]
    kernel: Float[Array, "flat features"]
    bias: Float[Array, " features"]

    def __init__(self, image_shape: tuple[int, ...], sizes: tuple[int, ...], *, key: Key[Array, ""]):
        """Args:
        image_shape: height, width, channels.
        sizes: channels of each stage, and last the number of features; published: 16, 32, 32, 512.
        key: of the Glorot uniform kernels; biases are zero.
        """
        height, width, in_channels = image_shape
        *channels, features = sizes
        *keys, key = jax.random.split(key, len(sizes))
        fans = itertools.pairwise((in_channels, *channels))
        self.stages = [Stage(*fan, key=k) for fan, k in zip(fans, keys, strict=True)]
        for _ in channels:
            height, width = -(-height // 2), -(-width // 2)
        self.kernel = glorot_uniform(key, (height * width * (channels[-1] if channels else in_channels), features))
        self.bias = jnp.zeros(features)

    def __call__(self, images: Num[Array, "*batch height width channels"]) -> Float[Array, "*batch features"]:
        """Encode one image or a batch."""
        *batch, height, width, channels = images.shape
        x = images.reshape(-1, height, width, channels).astype(self.bias.dtype) / 255
        for stage in self.stages:
            x = stage(x)
        x = jax.nn.relu(x).reshape(*batch, -1)
        return jax.nn.gelu(x @ self.kernel + self.bias, approximate=True)


class ImageNetwork(eqx.Module):
    """An MLP, or an ensemble of them, that works on what an encoder makes of images."""

    encoder: Encoder  # no other network has it
    mlp: Any


def num_features(observation_shape: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    """Numbers that go into an MLP of an observation: its own; of an image what an encoder of these sizes makes."""
    return observation_shape[0] if len(observation_shape) == 1 else sizes[-1]


def behind_encoder(
    observation_shape: tuple[int, ...], sizes: tuple[int, ...], mlp: Any, key: Key[Array, ""]
) -> Any | ImageNetwork:
    """The network of images that has this MLP behind a new encoder; where observations are vectors, the MLP as it is.

    Args:
        observation_shape: of one.
        sizes: of the encoder.
        mlp: of `num_features` inputs, and others.
        key: that of the MLP: what the encoder draws from it are other numbers.
    """
    if len(observation_shape) == 1:
        return mlp
    return ImageNetwork(Encoder(observation_shape, sizes, key=jax.random.fold_in(key, BEYOND_LAYERS)), mlp)


def see(network: Any | ImageNetwork, observations: Shaped[Array, "..."]) -> tuple[Float[Array, "..."], Any]:
    """What goes into the MLP of a network, and the MLP: vectors as they are; of images their features, of each once.

    Whatever the MLP is then asked for, K candidates, Euler steps, the members of an ensemble.
    """
    if isinstance(network, ImageNetwork):
        return network.encoder(observations), network.mlp
    return observations, network
