"""The model of `trestle-model` a second time, in plain PyTorch, as the yardstick of the parity tests.

Written from the formulae, sharing no code with the crate. Parameters carry the names of the crate's checkpoints, so
that weights move between the two by name. Legend: b microbatch, s position, d width, c boundary width.
"""

import math

import torch
import torch.nn.functional as F

WIRE = {"f32": torch.float32, "bf16": torch.bfloat16}


def rms_norm(x, gain, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * gain


def rotary(positions, head_dim, theta):
    """Returns cosines and sines [s, h], for pairs (i, i + h/2)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def turn(x_bnsh, cos, sin):
    first, second = x_bnsh.chunk(2, dim=-1)
    return x_bnsh * cos + torch.cat([-second, first], dim=-1) * sin


def explicit_attention(q, k, v):
    """Softmax attention written out, one step after the other."""
    positions = q.shape[-2]
    mask = torch.full((positions, positions), float("-inf")).triu(1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
    return scores.softmax(-1) @ v


def fused_attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Model(torch.nn.Module):
    """All stages in one module; `config` has the fields of the crate's `ModelConfig`."""

    def __init__(self, config, weights, attention=explicit_attention):
        super().__init__()
        self.config = config
        self.attention = attention
        self.names = sorted(weights)
        for name in self.names:
            parameter = torch.nn.Parameter(weights[name].clone().float())
            self.register_parameter(name.replace(".", "/"), parameter)
        head_dim = config["width"] // config["heads"]
        self.cos, self.sin = rotary(config["sequence_len"], head_dim, config["rope_theta"])

    def weight(self, name):
        return self.get_parameter(name.replace(".", "/") + "/weight")

    def by_name(self):
        return {name: self.get_parameter(name.replace(".", "/")) for name in self.names}

    def norm(self, x, name):
        return rms_norm(x, self.weight(name), self.config["norm_epsilon"])

    def attend(self, x, block):
        """Attn(n1 x)."""
        c = self.config
        b, s, d = x.shape
        x = self.norm(x, f"blocks.{block}.attention_norm")

        def heads(part, count):
            projected = x @ self.weight(f"blocks.{block}.attention.{part}").T
            return projected.view(b, s, count, d // c["heads"]).transpose(1, 2)

        cos, sin = self.cos[:s], self.sin[:s]
        q = turn(heads("query", c["heads"]), cos, sin)
        k = turn(heads("key", c["kv_heads"]), cos, sin)
        v = heads("value", c["kv_heads"])
        group = c["heads"] // c["kv_heads"]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = self.attention(q, k, v).transpose(1, 2).reshape(b, s, d)
        return mixed @ self.weight(f"blocks.{block}.attention.output").T

    def gate(self, h, block):
        """SiLU(W1 n2 h) * (W2 n2 h)."""
        h = self.norm(h, f"blocks.{block}.ffn_norm")
        return F.silu(h @ self.weight(f"blocks.{block}.ffn.gate").T) * (h @ self.weight(f"blocks.{block}.ffn.up").T)

    def pair(self, x, name):
        return F.silu(x @ self.weight(f"{name}.first").T) @ self.weight(f"{name}.last").T

    def pad(self, z):
        missing = self.config["width"] - z.shape[-1]
        return torch.cat([z, z.new_zeros(*z.shape[:-1], missing)], dim=-1)

    def stage(self, index, x):
        """Maps tokens or the received boundary to the sent boundary or the logits."""
        c = self.config
        form, k = c["boundary"], c["boundary_width"]
        first = sum(c["stage_layers"][:index])
        blocks = range(first, first + c["stage_layers"][index])
        last_stage = index + 1 == len(c["stage_layers"])
        source = None
        if index == 0:
            x = self.weight("embedding")[x]
        elif form == "resbm":
            x = self.pad(x) + self.pair(x, f"boundaries.{index - 1}.decoder")
        elif form == "fused":
            source = F.relu(x @ self.weight(f"boundaries.{index - 1}.decoder").T)
            x = self.pad(x)
        for block in blocks:
            h = x + self.attend(x if source is None else source, block)
            source = None
            inner = self.gate(h, block)
            if form == "fused" and block == blocks[-1] and not last_stage:
                return h[..., :k] + self.pair(inner, f"boundaries.{index}.encoder")
            x = h + inner @ self.weight(f"blocks.{block}.ffn.down").T
        if last_stage:
            return self.norm(x, "norm") @ self.weight("head").T
        if form == "resbm":
            normed = self.norm(x, f"boundaries.{index}.encoder.norm")
            return x[..., :k] + self.pair(normed, f"boundaries.{index}.encoder")
        return x

    def forward(self, tokens, boundaries=None):
        """Returns the logits; appends every boundary as it crosses to `boundaries`, its gradient retained."""
        x = tokens
        for index in range(len(self.config["stage_layers"])):
            x = self.stage(index, x)
            if index + 1 < len(self.config["stage_layers"]):
                x = x.to(WIRE[self.config["wire"]]).to(torch.float32)
                if boundaries is not None:
                    x.retain_grad()
                    boundaries.append(x)
        return x

    def loss(self, tokens, targets, boundaries=None):
        logits = self.forward(tokens, boundaries)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
