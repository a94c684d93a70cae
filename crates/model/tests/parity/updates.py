"""The updates of `trestle-model` a second time: schedule, clipping by stage, AdamW by torch.optim, and a plain Muon."""

import math

import torch


def factor(schedule, step):
    """The share of the peak learning rate for the update that follows version `step`."""
    warmup, steps = schedule["warmup_steps"], schedule["steps"]
    if step < warmup:
        return (step + 1) / warmup
    if schedule["kind"] == "constant":
        return 1.0
    if step >= steps:
        return schedule["floor"]
    progress = (step - warmup) / (steps - warmup)
    return schedule["floor"] + (1 - schedule["floor"]) * (1 + math.cos(math.pi * progress)) / 2


def stage_of(name, stage_layers):
    parts = name.split(".")
    if parts[0] == "blocks":
        block, stage = int(parts[1]), 0
        while block >= sum(stage_layers[: stage + 1]):
            stage += 1
        return stage
    if parts[0] == "boundaries":
        return int(parts[1]) + (1 if parts[2] == "decoder" else 0)
    return 0 if parts[0] == "embedding" else len(stage_layers) - 1


def is_hidden_matrix(name, tensor):
    return tensor.dim() == 2 and name.split(".")[0] in ("blocks", "boundaries")


def orthogonalise(matrix):
    """Five Newton-Schulz steps towards the nearest orthogonal matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / max(matrix.norm().item(), 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """One matrix at a time; Nesterov momentum as a running mean, decoupled decay, updates with AdamW's usual size."""

    def __init__(self, parameters, lr, momentum, decay):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.copy_(mu * mean + (1 - mu) * weight.grad)
                update = orthogonalise((1 - mu) * weight.grad + mu * mean)
                weight.mul_(1 - lr * group["decay"])
                weight.sub_(lr * 0.2 * math.sqrt(max(weight.shape)) * update)


class Trainer:
    """Updates the parameters of a `reference.Model` as an engine does; `config` is described in `compare.py`."""

    def __init__(self, config, named):
        self.config, self.named, self.version = config, named, 0
        c = config["optimizer"]
        hidden = {n for n, p in named.items() if c["kind"] == "muon" and is_hidden_matrix(n, p)}
        decayed = [p for n, p in named.items() if n not in hidden and p.dim() == 2]
        gains = [p for n, p in named.items() if p.dim() == 1]
        groups = [{"params": decayed, "weight_decay": c["weight_decay"]}, {"params": gains, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(
            groups, lr=c["learning_rate"], betas=(c["beta1"], c["beta2"]), eps=c["epsilon"], fused=True
        )
        self.optimizers = [(adamw, c["learning_rate"])]
        if hidden:
            rate = c.get("muon_learning_rate") or c["learning_rate"]
            matrices = [named[n] for n in sorted(hidden)]
            self.optimizers.append((Muon(matrices, rate, c["muon_momentum"], c["weight_decay"]), rate))

    def clip(self):
        """Holds each stage's gradient to clip * sqrt(its share of all parameters)."""
        if self.config["clip"] is None:
            return
        stages = {}
        for name, parameter in self.named.items():
            stages.setdefault(stage_of(name, self.config["model"]["stage_layers"]), []).append(parameter)
        total = sum(p.numel() for p in self.named.values())
        for members in stages.values():
            limit = self.config["clip"] * math.sqrt(sum(p.numel() for p in members) / total)
            norm = math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in members))
            if norm > limit:
                for parameter in members:
                    parameter.grad.mul_(limit / norm)

    def step(self):
        """Expects the mean gradient of the step in each parameter's `grad`, and clears it."""
        self.clip()
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor(self.config["schedule"], self.version)
            optimizer.step()
        for parameter in self.named.values():
            parameter.grad = None
        self.version += 1
