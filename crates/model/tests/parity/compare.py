"""Computes with PyTorch what `parity.rs` asks for, and writes it beside the request.

usage: compare.py FOLDER

FOLDER/config.json     {"model": ModelConfig, "optimizer": OptimizerConfig, "schedule": ScheduleConfig,
                        "clip": number or null, "microbatches": G, "steps": N}
FOLDER/request.safetensors
    start.NAME         first weights
    sum.STEP.NAME      the crate's gradient sums before each of N steps: the updates are replayed on these, since an
                       AdamW update is discontinuous where a gradient is near zero
    weight.NAME        weights for the forward and backward
    tokens, targets    [b, s]
FOLDER/answer.safetensors
    update.STEP.NAME   weights after each step
    loss, gradient.NAME, boundary.INDEX, boundary_gradient.INDEX
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

from reference import Model
from updates import Trainer


def named(tensors, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def replay(config, request, answer):
    model = Model(config["model"], named(request, "start."))
    parameters = model.by_name()
    trainer = Trainer(config, parameters)
    for step in range(config["steps"]):
        for name, total in named(request, f"sum.{step}.").items():
            parameters[name].grad = total / config["microbatches"]
        trainer.step()
        for name, parameter in parameters.items():
            answer[f"update.{step}.{name}"] = parameter.detach().clone()


def differentiate(config, request, answer):
    model = Model(config["model"], named(request, "weight."))
    boundaries = []
    loss = model.loss(request["tokens"], request["targets"], boundaries)
    loss.backward()
    answer["loss"] = loss.detach().reshape(1)
    for name, parameter in model.by_name().items():
        answer[f"gradient.{name}"] = parameter.grad
    for index, boundary in enumerate(boundaries):
        answer[f"boundary.{index}"] = boundary.detach().contiguous()
        answer[f"boundary_gradient.{index}"] = boundary.grad.contiguous()


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    request, answer = load_file(folder / "request.safetensors"), {}
    replay(config, request, answer)
    differentiate(config, request, answer)
    save_file(answer, folder / "answer.safetensors")


if __name__ == "__main__":
    main()
