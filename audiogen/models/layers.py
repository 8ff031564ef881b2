"""Streaming layers over (B, S, D): forward(x, state=None) -> (y, state).

State is a value: a tree of tensors of fixed shape; `None` means "nothing seen yet". A layer consumes the state it is
given (it writes the ring buffers in place), so clone it first if you need it again. One `forward` serves training
(state=None), prefill (a long chunk) and single steps (a chunk of one).
"""

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

#: State of a layer between chunks: tensors of fixed shape, by name.
LayerState: TypeAlias = dict[str, Tensor]
#: State of a model: a tree (dicts, lists) of tensors of fixed shape. Only the module that made it knows its structure;
#: all other code passes it on unchanged.
State: TypeAlias = Any


class DelayLine(nn.Module):
    """Prepend the last `length` inputs to each chunk: (B, S, D) -> (B, length + S, D).

    Inputs before the start are zero. The ring buffer holds the input of step t in slot t mod length, so a step writes
    one slot, whatever the length:

        steps seen      0 1 2 3 4 5 6 | chunk: 7 8
        ring (length 4)  4 5 6 3        -> y = 3 4 5 6 7 8, ring becomes 8 5 6 7
    """

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Return the past and the chunk, (B, length + S, D), and the next state."""
        if state is None:
            y = F.pad(x, (0, 0, self.length, 0))  # (B, length + S, D)
            return y, self._start(y, x.shape[1])
        y = torch.cat([self._past(state), x], dim=1)
        ring, position = state["ring"], state["position"]
        _write(ring, position, x)
        return y, {"ring": ring, "position": position + x.shape[1]}

    def tap(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Return the delayed inputs x[t - length] alone, (B, S, D), without copying the rest, and the next state."""
        if state is None:
            y = F.pad(x, (0, 0, self.length, 0))
            return y[:, : x.shape[1]], self._start(y, x.shape[1])
        ring, position = state["ring"], state["position"]
        steps = x.shape[1]
        slots = _slots(position, min(steps, self.length), self.length)
        y = ring.index_select(1, slots)
        if steps <= self.length:  # the new inputs take the slots of those that leave
            ring.index_copy_(1, slots, x.detach().to(ring.dtype))
        else:
            y = torch.cat([y, x[:, : steps - self.length]], dim=1)
            _write(ring, position, x)
        return y, {"ring": ring, "position": position + steps}

    def _past(self, state: LayerState) -> Tensor:
        return state["ring"].index_select(1, _slots(state["position"], self.length, self.length))

    def _start(self, y: Tensor, steps: int) -> LayerState:
        """Return the state after a first chunk of `steps` inputs; y is `length` zeros followed by that chunk."""
        position = _position(steps, y)
        newest = y[:, steps:].detach()  # (B, length, D), the oldest first
        return {"ring": torch.roll(newest, steps % max(self.length, 1), dims=1), "position": position}


class CausalConv(nn.Module):
    """Dilated causal convolution over steps, (B, S, D_in) -> (B, S, D_out), computed as one linear layer.

    y[t] = bias + sum over k of weight[k] x[t - (kernel_size - 1 - k) dilation]; inputs before the start are zero.
    """

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int, dilation: int = 1):
        super().__init__()
        self.kernel_size, self.dilation = kernel_size, dilation
        self.line = DelayLine((kernel_size - 1) * dilation)
        self.linear = nn.Linear(kernel_size * dim_in, dim_out)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Convolve a chunk (B, S, D_in); return (B, S, D_out) and the next state."""
        if self.kernel_size == 2:  # WaveNet's case: one past tap and the current one
            past, next_state = self.line.tap(x, state)
            return self.linear(torch.cat([past, x], dim=2)), next_state
        steps = x.shape[1]
        x, next_state = self.line(x, state)
        taps = [x[:, k * self.dilation : k * self.dilation + steps] for k in range(self.kernel_size)]
        return self.linear(torch.cat(taps, dim=2)), next_state


def rotary(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines (S, dim / 2) of rotary positions (Su et al. 2021, RoFormer, section 3.4.2).

    Angles are computed in float64, so that positions in the millions are as exact as the first.
    """
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float64) / dim)
    angles = positions.to(torch.float64)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + dim / 2]) of (..., S, dim) by the angles of `rotary`."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class CausalAttention(nn.Module):
    """Multi-head self-attention over the last `window` steps, including the current one: (B, S, D) -> (B, S, D).

    Keys carry rotary positions and are kept in a ring of `window` slots, so every step costs the same. A long chunk
    without state is cut into blocks of one window, each of which attends to itself and the block before it, so no mask
    grows with the square of the length:

        keys      | block i-1 | block i |
        queries               | block i |       query t attends to key j if t - window < j <= t

    Attention weights are not dropped out: PyTorch's fused attention on CPUs has no dropout, and without it a training
    step of the base model takes 1.6 times as long. That kernel is slow where there is little to attend to, and slowest
    backwards in bfloat16: a training step of the base model takes 0.8 of the time where the scores of its crops
    are simply computed.
    """

    #: Number of scores (B, H, S, S) up to which they are computed at once.
    SMALL = 2**20

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, state: LayerState | None = None) -> tuple[Tensor, LayerState]:
        """Attend within a chunk (B, S, D) and to the window before it; return (B, S, D) and the next state."""
        q, k, v = self._heads(x, state["position"] if state is not None else _position(0, x))
        if state is None:
            y, state = self._whole(q, k, v)
        else:
            y, state = self._chunk(q, k, v, state)
        return self.out(y.transpose(1, 2).reshape(x.shape)), state

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention weights of `forward(x)`: (B, S, D) -> (B, H, S, S).

        Row t holds the weight of each step in the output of step t; a row sums to 1 and is 0 outside the window. For
        inspection only: unlike `forward`, it takes memory proportional to S squared.
        """
        q, k, _ = self._heads(x, _position(0, x))
        t = torch.arange(x.shape[1], device=x.device)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        return scores.masked_fill(~self._sees(t[:, None], t), -math.inf).softmax(dim=-1)

    def _heads(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries, rotated keys and values (B, H, S, D / H) of a chunk that begins at `position`."""
        B, S, _ = x.shape
        qkv = self.qkv(x).view(B, S, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[:2], *rotary(position + torch.arange(S, device=x.device), qkv.shape[-1]))
        return q, k, qkv[2]

    def _sees(self, t: Tensor, j: Tensor) -> Tensor:
        """Return whether step t attends to step j."""
        return (j <= t) & (j > t - self.window)

    def _whole(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, LayerState]:
        S, W = q.shape[2], self.window
        t = torch.arange(S, device=q.device)
        if q.shape[:2].numel() * S**2 <= self.SMALL:
            y = scaled_dot_product_attention(q, k, v, attn_mask=self._sees(t[:, None], t))
        elif S <= W:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            blocks = []
            for start in range(0, S, W):
                block, seen = slice(start, start + W), slice(max(0, start - W + 1), start + W)
                mask = self._sees(t[block, None], t[seen])
                blocks.append(
                    F.scaled_dot_product_attention(q[:, :, block], k[:, :, seen], v[:, :, seen], attn_mask=mask)
                )
            y = torch.cat(blocks, dim=2)
        pad = (0, 0, max(0, W - S), 0)
        rings = [torch.roll(F.pad(z[:, :, -W:].detach(), pad), S % W, dims=2) for z in (k, v)]
        return y, {"keys": rings[0], "values": rings[1], "position": _position(S, q)}

    def _chunk(self, q: Tensor, k: Tensor, v: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        S, W = q.shape[2], self.window
        keys, values, position = state["keys"], state["values"], state["position"]
        if S > W:  # one window at a time
            parts = []
            for start in range(0, S, W):
                piece = slice(start, start + W)
                y, state = self._chunk(q[:, :, piece], k[:, :, piece], v[:, :, piece], state)
                parts.append(y)
            return torch.cat(parts, dim=2), state
        slots = torch.arange(W, device=q.device)
        # A single step may write its slot first and read itself from it, since what was there has left the window. Only
        # without gradients: none flow through the ring.
        if S == 1 and not torch.is_grad_enabled():
            slot = position.view(1) % W
            keys.index_copy_(2, slot, k.to(keys.dtype))
            values.index_copy_(2, slot, v.to(values.dtype))
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=slots[None] <= position)
        else:
            t, last = position + torch.arange(S, device=q.device), position - 1
            j = torch.cat([last - (last - slots) % W, t])  # the step in each slot; negative if empty
            y = F.scaled_dot_product_attention(
                q,
                torch.cat([keys, k], dim=2),
                torch.cat([values, v], dim=2),
                attn_mask=(j >= 0) & self._sees(t[:, None], j),
            )
            _write(keys, position, k, dim=2)
            _write(values, position, v, dim=2)
        return y, {"keys": keys, "values": values, "position": position + S}


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
    """Attend as torch's function of this name does, by computing all scores.

    Modes that observe torch's functions, such as that of the training diagnostics, see it too.

    Args:
        q: queries (B, H, S, D / H).
        k: keys (B, H, T, D / H).
        v: values (B, H, T, D / H).
        attn_mask: (S, T) bool, where a query attends to a key.
    """
    if has_torch_function((q, k, v)):
        return handle_torch_function(scaled_dot_product_attention, (q, k, v), q, k, v, attn_mask=attn_mask)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, H, S, T)
    return scores.masked_fill(~attn_mask, -math.inf).softmax(dim=-1) @ v


class Memory(NamedTuple):
    """Texts that the layers of a backbone attend to.

    Attributes:
        keys_values: (M, layers, 2, D), keys and values of all bytes of all texts, the null text first.
        owner: (M,) int64, the text of each; 0 is the null text.
        wanted: (B or 1, S or 1) int64, the text that holds at each step.
    """

    keys_values: Tensor
    owner: Tensor
    wanted: Tensor


class CrossAttention(nn.Module):
    """Multi-head attention to the text that holds at each step: (B, S, D) -> (B, S, D), zero before training.

    Bytes of other texts are masked, so texts of other items change nothing, and there is no padding.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Memory, layer: int) -> Tensor:
        """Attend to the keys and values that the memory holds for `layer`."""
        B, S, D = x.shape
        q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, S, D / H)
        k, v = memory.keys_values[:, layer].to(q).unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3)[:, None]
        mask = memory.wanted[:, None, :, None] == memory.owner  # (B or 1, 1, S or 1, M)
        y = F.scaled_dot_product_attention(
            q, k.expand(B, -1, -1, -1), v.expand(B, -1, -1, -1), attn_mask=mask.expand(B, 1, S, -1)
        )
        return self.out(y.transpose(1, 2).reshape(B, S, D))


def clone_state(state: State) -> State:
    """Copy a state tree, so that further steps do not change the copy."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: clone_state(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return [clone_state(value) for value in state]
    return state


def copy_state(into: State, state: State) -> None:
    """Copy a state into the tensors of another of the same structure, which keep their memory addresses."""
    if isinstance(state, Tensor):
        if into is not state:  # a ring was written in place
            into.copy_(state)
    elif state is not None:
        for key in state if isinstance(state, dict) else range(len(state)):
            copy_state(into[key], state[key])


def _position(step: int, like: Tensor) -> Tensor:
    """Return a position as a scalar tensor, filled on the device to avoid a host-to-device copy."""
    return torch.full((), step, dtype=torch.int64, device=like.device)


def _slots(position: Tensor, steps: int, length: int) -> Tensor:
    return (position + torch.arange(steps, device=position.device)) % max(length, 1)


def _write(ring: Tensor, position: Tensor, x: Tensor, dim: int = 1) -> None:
    """Write the newest inputs of x into the slots of their steps."""
    length, steps = ring.shape[dim], x.shape[dim]
    if length == 0:
        return
    kept = min(steps, length)
    newest = x.narrow(dim, steps - kept, kept).detach()
    ring.index_copy_(dim, _slots(position + (steps - kept), kept, length), newest.to(ring.dtype))
