"""Draws a trace of preemptions in the form that fleet files take (docs/plan.md, "Availability").

usage: spot_trace.py --rate 0.10 [--peers 24] [--hours 24] [--away 15min] [--burst 2] [--seed 1] > trace.csv

Capacity goes in bursts: a zone takes back several machines within a minute, as published traces of spot markets show
(Bamboo, NSDI 2023; Varuna, EuroSys 2022). Of each machine's hours, --rate end in a preemption, on the mean; a burst takes 1 to twice
--burst less one machines that are there, and each comes back after a time that is exponential with the mean --away, at least a minute.
"""

import argparse
import random


def minutes(text):
    return float(text.removesuffix("min")) * 60.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, required=True, help="preemptions of one machine in an hour")
    parser.add_argument("--peers", type=int, default=24)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--away", type=minutes, default=900.0, help="mean, such as 15min")
    parser.add_argument("--burst", type=int, default=2, help="mean machines of a burst")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draws = random.Random(options.seed)
    end = options.hours * 3600.0
    events, back = [], [0.0] * options.peers
    at = 0.0
    while True:
        there = [peer for peer in range(options.peers) if back[peer] <= at]
        # Bursts come as often as makes the rate, for those that are there.
        at += draws.expovariate(max(len(there), 1) * options.rate / options.burst / 3600.0)
        if at >= end:
            break
        there = [peer for peer in range(options.peers) if back[peer] <= at]
        count = min(len(there), draws.randint(1, 2 * options.burst - 1))
        for peer in draws.sample(there, count):
            gone = at + draws.uniform(0.0, 60.0)
            back[peer] = gone + max(60.0, draws.expovariate(1.0 / options.away))
            events += [(gone, peer, "gone"), (back[peer], peer, "back")]
    events = sorted(event for event in events if event[0] < end)
    print(f"# {options.rate:.0%} an hour, {options.peers} peers, drawn by scripts/spot_trace.py --seed {options.seed}")
    print("seconds,peer,event")
    for seconds, peer, event in events:
        print(f"{seconds:.0f},{peer},{event}")
    print(f"{end:.0f},,end")


if __name__ == "__main__":
    main()
