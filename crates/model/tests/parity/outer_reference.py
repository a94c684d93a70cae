"""The outer step of DiLoCo a second time: pseudo-gradients of several replicas, averaged, into torch.optim.SGD.

usage: outer_reference.py REQUEST.json

The request holds "rule" (as a run file names it), "start" (the first weights), "weights" (one a replica) and "movements"
(outer step x replica x element: how far each replica's weights end below the weights they began with). Prints the shared
weights after each outer step, in JSON.
"""

import json
import sys

import torch


def optimizer(rule, anchor):
    """Returns the optimizer, and the momentum of each outer step."""
    if rule == "mean":
        return torch.optim.SGD([anchor], lr=1.0), lambda step: 0.0
    if "plain" in rule:
        return torch.optim.SGD([anchor], lr=rule["plain"]["learning_rate"]), lambda step: 0.0
    settings = rule["nesterov"]
    full, ramp = settings["momentum"], settings.get("ramp")

    def momentum(step):
        if ramp is None or step >= ramp["steps"]:
            return full
        return ramp["from"] + (full - ramp["from"]) * step / ramp["steps"]

    return torch.optim.SGD([anchor], lr=settings["learning_rate"], momentum=full, nesterov=True), momentum


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    anchor = torch.nn.Parameter(torch.tensor(request["start"], dtype=torch.float32))
    sgd, momentum = optimizer(request["rule"], anchor)
    weights, anchors = request["weights"], []
    for step, movements in enumerate(request["movements"]):
        replicas = [anchor.detach() - torch.tensor(movement) for movement in movements]
        differences = [w * (anchor.detach() - replica) for w, replica in zip(weights, replicas)]
        anchor.grad = sum(differences) / sum(weights)
        if "nesterov" in request["rule"]:
            sgd.param_groups[0]["momentum"] = momentum(step)
        sgd.step()
        anchors.append(anchor.detach().tolist())
    json.dump(anchors, sys.stdout)


main()
