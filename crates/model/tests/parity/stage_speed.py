"""Times in PyTorch eager what `examples/stage_speed.rs` times: the same stage, shapes, threads and update.

usage: stage_speed.py f32|bf16 THREADS STEPS [DEVICE]

Written as a PyTorch user would: rms_norm, linear and attention from torch.nn.functional, fused AdamW, and for bf16 f32
master weights with bf16 copies, f32 gradients, and one cast each way.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F

D, HEADS, KV, FFN, S, B, BLOCKS = 512, 8, 4, 1376, 256, 4, 4
H = D // HEADS


def block_shapes():
    return {"n1": (D,), "q": (D, D), "k": (KV * H, D), "v": (KV * H, D), "o": (D, D),
            "n2": (D,), "gate": (FFN, D), "up": (FFN, D), "down": (D, FFN)}  # fmt: skip


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def block(x, w, cos, sin):
    h = F.rms_norm(x, (D,), w["n1"], 1e-5)
    q = F.linear(h, w["q"]).view(B, S, HEADS, H).transpose(1, 2)
    k = F.linear(h, w["k"]).view(B, S, KV, H).transpose(1, 2)
    v = F.linear(h, w["v"]).view(B, S, KV, H).transpose(1, 2)
    q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + F.linear(mixed.transpose(1, 2).reshape(B, S, D), w["o"])
    h = F.rms_norm(x, (D,), w["n2"], 1e-5)
    return x + F.linear(F.silu(F.linear(h, w["gate"])) * F.linear(h, w["up"]), w["down"])


def main():
    if len(sys.argv) < 4 or sys.argv[1] not in ("f32", "bf16"):
        sys.exit("usage: stage_speed.py f32|bf16 THREADS STEPS [DEVICE]")
    torch.set_num_threads(int(sys.argv[2]))
    device = torch.device(sys.argv[4] if len(sys.argv) > 4 else "cpu")
    kind = torch.float32 if sys.argv[1] == "f32" else torch.bfloat16
    torch.manual_seed(1)
    masters = []
    for _ in range(BLOCKS):
        for shape in block_shapes().values():
            value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
            masters.append(value.to(device).requires_grad_())
    decayed, gains = [p for p in masters if p.dim() == 2], [p for p in masters if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
    leaves = masters if kind == torch.float32 else [p.detach().to(kind).requires_grad_() for p in masters]
    angles = torch.outer(torch.arange(S).double(), 10000.0 ** (-torch.arange(0, H, 2).double() / H))
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos().to(device, kind), angles.sin().to(device, kind)
    names, source = list(block_shapes()), (torch.randn(B, S, D) * 0.02).to(device, kind)
    seconds = []
    for step in range(int(sys.argv[3]) + 2):
        start = time.perf_counter()
        x = source.clone().requires_grad_()
        y = x
        for index in range(BLOCKS):
            first = index * len(names)
            y = block(y, dict(zip(names, leaves[first : first + len(names)])), cos, sin)
        y.backward(source)
        if kind != torch.float32:
            for master, leaf in zip(masters, leaves):
                master.grad, leaf.grad = leaf.grad.float(), None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if kind != torch.float32:
            with torch.no_grad():
                for master, leaf in zip(masters, leaves):
                    leaf.copy_(master)
        x.grad.float().cpu()
        if step >= 2:
            seconds.append(time.perf_counter() - start)
    seconds.sort()
    best, median = seconds[0] * 1e3, seconds[len(seconds) // 2] * 1e3
    print(json.dumps({"best_ms": round(best, 2), "median_ms": round(median, 2)}))


if __name__ == "__main__":
    main()
