"""Turns lines of the example `outer_quality` into a table: mean held-out loss over seeds, spread, and what it is over H = 1.

usage: outer_quality.py FILE
"""

import json
import statistics
import sys


def settings(run):
    outer = run["outer"]
    rule = outer["rule"] if isinstance(outer["rule"], str) else json.dumps(outer["rule"])
    return (run["steps"], run["h"], outer["codec"], rule, outer["error_decay"], run["delay"])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    groups = {}
    with open(sys.argv[1], encoding="utf-8") as file:
        for run in map(json.loads, file):
            groups.setdefault(settings(run), {})[run["seed"]] = (run["held_out"], run["bits_a_parameter"])
    print("| steps | H | codec | rule, decay of debts, delay | bits a parameter | held-out loss, seeds | mean | spread | over H = 1 | over f32 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    means = {key: statistics.mean(loss for loss, _ in runs.values()) for key, runs in groups.items()}
    for key in sorted(groups):
        steps, h, codec, rule, decay, delay = key
        losses = [groups[key][seed][0] for seed in sorted(groups[key])]
        bits = next(iter(groups[key].values()))[1]
        base = [mean for other, mean in means.items() if other[:2] == (steps, 1)]
        dense = [mean for other, mean in means.items() if other[:4] == (steps, h, "f32", "mean") and other[5] == 0]
        over = [f"{means[key] / reference[0] - 1:+.2%}" if reference else "" for reference in (base, dense)]
        print(
            f"| {steps} | {h} | {codec} | {rule}, {decay}, {delay} | {bits:.5g} | {', '.join(f'{loss:.4f}' for loss in losses)} | "
            f"{means[key]:.4f} | {max(losses) - min(losses):.4f} | {over[0]} | {over[1]} |"
        )


if __name__ == "__main__":
    main()
