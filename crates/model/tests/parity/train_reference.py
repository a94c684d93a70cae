"""Trains the reference model in one PyTorch process, on the samples and from the weights of a run of the crate.

Prints one JSON object: {"losses": [one per step], "held_out": number, "seconds": number, "tokens_per_second": number}.
Step n reads samples n*G*B to (n+1)*G*B in the file's order, G microbatches of B, and takes the mean gradient.
Token files hold u32 numbers, little endian, shape [samples, sequence_len + 1]. The configuration is that of
`compare.py`, without `microbatches` and `steps`; weights carry the crate's names.
"""

import argparse
import array
import json
import sys
import time

import torch
from safetensors.torch import load_file

from reference import Model, fused_attention
from updates import Trainer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="first weights, safetensors")
    parser.add_argument("--tokens", required=True, help="training samples in training order")
    parser.add_argument("--held-out", required=True, help="held-out samples")
    parser.add_argument("--config", required=True, help="JSON file")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps")
    parser.add_argument("--batch", type=int, required=True, help="samples of a microbatch (B)")
    parser.add_argument("--microbatches", type=int, default=1, help="microbatches of a step (G)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--every", type=int, default=50, help="steps between progress lines on standard error")
    return parser.parse_args()


def samples(path, length):
    numbers = array.array("I")
    with open(path, "rb") as file:
        numbers.frombytes(file.read())
    if sys.byteorder == "big":
        numbers.byteswap()
    if not numbers or len(numbers) % length:
        sys.exit(f"error: {path} holds {len(numbers)} tokens, expected a multiple of {length}")
    return torch.tensor(numbers, dtype=torch.int64).view(-1, length)


def held_out_loss(model, held_out, batch):
    total = 0.0
    with torch.no_grad():
        for rows in held_out.split(batch):
            total += model.loss(rows[:, :-1], rows[:, 1:]).item() * len(rows)
    return total / len(held_out)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    with open(args.config, encoding="utf-8") as file:
        config = json.load(file)
    length = config["model"]["sequence_len"] + 1
    tokens, held_out = samples(args.tokens, length), samples(args.held_out, length)
    per_step = args.batch * args.microbatches
    if len(tokens) < args.steps * per_step:
        sys.exit(f"error: {args.tokens} holds {len(tokens)} samples, {args.steps} steps of {per_step} need more")
    state = ("adamw.", "muon.", "optimizer.")
    weights = {name: tensor for name, tensor in load_file(args.weights).items() if not name.startswith(state)}
    model = Model(config["model"], weights, attention=fused_attention)
    trainer = Trainer(config, model.by_name())
    losses, start = [], time.monotonic()
    for step in range(args.steps):
        rows = tokens[step * per_step : (step + 1) * per_step]
        total = 0.0
        for microbatch in rows.split(args.batch):
            loss = model.loss(microbatch[:, :-1], microbatch[:, 1:]) / args.microbatches
            loss.backward()
            total += loss.item()
        trainer.step()
        losses.append(total)
        if args.every and (step + 1) % args.every == 0:
            print(f"step {step + 1} loss {total:.4f}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - start
    trained = args.steps * per_step * (length - 1)
    print(
        json.dumps(
            {
                "losses": losses,
                "held_out": held_out_loss(model, held_out, args.batch),
                "seconds": seconds,
                "tokens_per_second": trained / seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
