"""DROL's and FQL's updates in float64 NumPy, slow and plain, from the equations of arXiv 2604.22229 and 2502.02538.

Networks are dicts: 'kernels' (inputs, outputs), 'biases', and for critics 'scales', 'shifts' of LayerNorm. Gradients
are written out by hand; nothing here knows of JAX.
"""

import numpy as np


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


def forward(net, x):
    """Output and what the backward pass needs."""
    tape = []
    hidden = len(net["kernels"]) - 1
    for i in range(hidden):
        pre = x @ net["kernels"][i] + net["biases"][i]
        post = gelu(pre)
        normed = post
        if "scales" in net:
            centred = post - post.mean(-1, keepdims=True)
            sigma = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
            normed = centred / sigma * net["scales"][i] + net["shifts"][i]
            tape.append((x, pre, centred / sigma, sigma))
        else:
            tape.append((x, pre, None, None))
        x = normed
    tape.append((x,))
    return x @ net["kernels"][-1] + net["biases"][-1], tape


def backward(net, tape, grad):
    """Gradients of the parameters and of the input, from the gradient of the output."""
    grads = {key: [None] * len(value) for key, value in net.items()}
    (x,) = tape[-1]
    grads["kernels"][-1], grads["biases"][-1] = x.T @ grad, grad.sum(0)
    grad = grad @ net["kernels"][-1].T
    for i in reversed(range(len(net["kernels"]) - 1)):
        x, pre, unit, sigma = tape[i]
        if "scales" in net:
            grads["scales"][i], grads["shifts"][i] = (grad * unit).sum(0), grad.sum(0)
            grad = grad * net["scales"][i]
            grad = (grad - grad.mean(-1, keepdims=True) - unit * (grad * unit).mean(-1, keepdims=True)) / sigma
        grad = grad * gelu_slope(pre)
        grads["kernels"][i], grads["biases"][i] = x.T @ grad, grad.sum(0)
        grad = grad @ net["kernels"][i].T
    return grads, grad


def q_values(critics, observations, actions):
    pairs = [forward(critic, np.concatenate([observations, actions], -1)) for critic in critics]
    return np.stack([q[:, 0] for q, _ in pairs]), [tape for _, tape in pairs]


def aggregate(q, how):
    """Aggregated Q-values and the weight of each member in them."""
    if how == "mean":
        return q.mean(0), np.full(q.shape, 1 / len(q))
    weights = np.zeros(q.shape)
    weights[q.argmin(0), np.arange(q.shape[1])] = 1
    return q.min(0), weights


def critic_loss(settings, critics, targets, actor, batch, noise):
    """Loss and gradients of each critic."""
    next_actions = best_next_actions(targets, actor, batch["next_observations"], noise["next_latents"])
    next_q, _ = q_values(targets, batch["next_observations"], next_actions)
    next_q, _ = aggregate(next_q, settings["q_agg"])
    y = batch["rewards"] + settings["discount"] * batch["masks"] * next_q
    q, tapes = q_values(critics, batch["observations"], batch["actions"])
    grads = [
        backward(critic, tape, (2 * (q_i - y) / q.size)[:, None])[0]
        for critic, tape, q_i in zip(critics, tapes, q, strict=True)
    ]
    return ((q - y) ** 2).mean(), grads


def best_next_actions(targets, actor, observations, latents):
    """One latent a state: its action. Several: the action that the more pessimistic of the targets likes best."""
    actions = []
    for s, zs in zip(observations, np.reshape(latents, (len(observations), -1, latents.shape[-1])), strict=True):
        candidates = [np.clip(forward(actor, np.concatenate([s, z])[None])[0], -1, 1) for z in zs]
        judged = [min(float(q[0]) for q in q_values(targets, s[None], c)[0]) for c in candidates]
        actions.append(candidates[judged.index(max(judged))][0])
    return np.array(actions)


def route(actor, batch, latents):
    """The winning latent of each transition, by brute force."""
    winners = []
    for s, a, zs in zip(batch["observations"], batch["actions"], latents, strict=True):
        best, best_distance = None, np.inf
        for z in zs:
            c, _ = forward(actor, np.concatenate([s, z])[None])
            distance = ((np.clip(c[0], -1, 1) - a) ** 2).sum()
            if distance < best_distance:
                best, best_distance = z, distance
        winners.append(best)
    return np.stack(winners)


def policy_gradient(critics, observations, actions, how, normalize):
    """L_q and its gradient with respect to the actions."""
    q, tapes = q_values(critics, observations, actions)
    q_agg, weights = aggregate(q, how)
    scale = 1 / max(np.abs(q_agg).mean(), 1e-6) if normalize else 1.0
    grad = np.zeros_like(actions)
    for critic, tape, weight in zip(critics, tapes, weights, strict=True):
        _, grad_input = backward(critic, tape, (-scale * weight / len(actions))[:, None])
        grad += grad_input[:, -actions.shape[1] :]
    return -scale * q_agg.mean(), grad


def drol_actor_loss(settings, critics, nets, batch, noise):
    """Loss, and the gradients of each network but the critics: the actor."""
    z = route(nets["actor"], batch, noise["latents"])
    raw, tape = forward(nets["actor"], np.concatenate([batch["observations"], z], -1))
    c = np.clip(raw, -1, 1)
    size, d = c.shape
    bc = (((c - batch["actions"]) ** 2).sum(-1) / d).mean()
    improvement, grad_q = policy_gradient(
        critics, batch["observations"], c, settings["actor_q_agg"], settings["normalize_q_loss"]
    )
    grad_c = settings["bc_coef"] * 2 * (c - batch["actions"]) / (d * size) + settings["q_coef"] * grad_q
    grads, _ = backward(nets["actor"], tape, grad_c * (np.abs(raw) < 1))
    return settings["bc_coef"] * bc + settings["q_coef"] * improvement, {"actor": grads}


def euler(flow, observations, z, steps):
    """Where the flow leads from z."""
    x = z
    for i in range(steps):
        t = np.full((len(x), 1), i / steps)
        x = x + forward(flow, np.concatenate([observations, x, t], -1))[0] / steps
    return np.clip(x, -1, 1)


def fql_actor_loss(settings, critics, nets, batch, noise):
    """Loss, and the gradients of each network but the critics: the actor and the flow."""
    s, a, x0, t, z = batch["observations"], batch["actions"], noise["flow_noise"], noise["flow_times"], noise["latents"]
    velocity, flow_tape = forward(nets["flow"], np.concatenate([s, (1 - t) * x0 + t * a, t], -1))
    error = velocity - (a - x0)
    flow_grads, _ = backward(nets["flow"], flow_tape, 2 * error / error.size)

    teacher = euler(nets["flow"], s, z, settings["flow_steps"])
    raw, tape = forward(nets["actor"], np.concatenate([s, z], -1))
    improvement, grad_q = policy_gradient(critics, s, np.clip(raw, -1, 1), "mean", settings["normalize_q_loss"])
    grad = settings["alpha"] * 2 * (raw - teacher) / raw.size + grad_q * (np.abs(raw) < 1)
    actor_grads, _ = backward(nets["actor"], tape, grad)
    loss = (error**2).mean() + settings["alpha"] * ((raw - teacher) ** 2).mean() + improvement
    return loss, {"actor": actor_grads, "flow": flow_grads}


def adam(settings, params, grads, moments, step):
    """One Adam step (betas 0.9 and 0.999, eps 1e-8); step counts from 1."""
    new_params, new_moments = [], []
    for p, g, (m, v) in zip(params, grads, moments, strict=True):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        new_params.append(p - settings["learning_rate"] * direction)
        new_moments.append((m, v))
    return new_params, new_moments


# The encoder of images: {'stages': three (kernel, bias) of each, 'kernel', 'bias'}.


def encode(encoder, images):
    """Features, and what the backward pass needs."""
    x, tape = images / 255, []
    for first, *block in encoder["stages"]:
        convolved = convolve(x, first)
        pooled, places = max_pool(convolved)
        inner = convolve(np.maximum(pooled, 0), block[0])
        tape.append((x, convolved.shape, places, pooled, inner))
        x = pooled + convolve(np.maximum(inner, 0), block[1])
    flat = x.reshape(len(x), -1)
    pre = np.maximum(flat, 0) @ encoder["kernel"] + encoder["bias"]
    return gelu(pre), (tape, x.shape, flat, pre)


def encode_backward(encoder, tape, grad):
    """Gradients of the parameters, in the structure of `encoder`, from that of the features."""
    tape, shape, flat, pre = tape
    grad = grad * gelu_slope(pre)
    grads = {"kernel": np.maximum(flat, 0).T @ grad, "bias": grad.sum(0), "stages": []}
    grad = (grad @ encoder["kernel"].T * (flat > 0)).reshape(shape)
    for (first, *block), (x, shape, places, pooled, inner) in zip(encoder["stages"][::-1], tape[::-1], strict=True):
        last, grad_inner = convolve_backward(np.maximum(inner, 0), block[1], grad)
        middle, grad_pooled = convolve_backward(np.maximum(pooled, 0), block[0], grad_inner * (inner > 0))
        grad_pooled = grad + grad_pooled * (pooled > 0)
        grad_convolved = np.zeros(shape)
        np.add.at(grad_convolved, places, grad_pooled)
        of_first, grad = convolve_backward(x, first, grad_convolved)
        grads["stages"].insert(0, [of_first, middle, last])
    return grads


def convolve(x, weights):
    """3 x 3, zeros around: each pixel from its neighbourhood, one after the other."""
    kernel, bias = weights
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.empty((*x.shape[:3], kernel.shape[-1]))
    for row, column in np.ndindex(*x.shape[1:3]):
        around = padded[:, row : row + 3, column : column + 3]
        out[:, row, column] = np.tensordot(around, kernel, 3) + bias
    return out


def convolve_backward(x, weights, grad):
    """Gradients of kernel and bias, and of x."""
    kernel, _ = weights
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    of_kernel, of_padded = np.zeros_like(kernel), np.zeros_like(padded)
    for row, column in np.ndindex(*x.shape[1:3]):
        around, here = np.s_[:, row : row + 3, column : column + 3], grad[:, row, column]
        of_kernel += np.tensordot(padded[around], here, (0, 0))
        of_padded[around] += np.tensordot(here, kernel, (1, 3))
    return (of_kernel, grad.sum((0, 1, 2))), of_padded[:, 1:-1, 1:-1]


def max_pool(x):
    """3 x 3, stride 2: pixels 2i to 2i + 2 of an even size, 2i - 1 to 2i + 1 of an odd one. And from where."""
    n, height, width, channels = x.shape
    out = np.empty((n, -(-height // 2), -(-width // 2), channels))
    places = np.empty((4, *out.shape), int)
    for index in np.ndindex(*out.shape):
        i, row, column, channel = index
        rows = [r + 2 * row - height % 2 for r in range(3)]
        columns = [c + 2 * column - width % 2 for c in range(3)]
        inside = [(i, r, c, channel) for r in rows for c in columns if 0 <= r < height and 0 <= c < width]
        places[(slice(None), *index)] = best = max(inside, key=lambda place: x[place])
        out[index] = x[tuple(best)]
    return out, tuple(places)
