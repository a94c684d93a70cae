"""Holds forecasts against real runs on this computer.

usage: forecast_bench.py TRESTLE [RUN.toml] [--share 0.1] [--settle 20] [--calm 60] [--only NAME] [--steps N] [--set KEY=VALUE]

Each peer has --share of a core to train with, given by a control group (needs root), so that a peer is a device of its own. What
such a device does is measured by `trestle profile` in a group with the same share, the middle of three times; `trestle plan` makes a forecast for a fleet
of them over links that cost nothing; then a swarm of processes trains, and after --settle steps, by when replicas of unlike speed take
turns in proportion, its tokens are counted for --calm seconds.
Prints one line of JSON for each configuration: {name, forecast, real, ratio}; tokens a second. Then, for each of two plans, {name,
seconds, bound}.

Signals only processes that it has started itself.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from chaos import arguments
from churn_bench import Bench, Share

# Two measurements of a device differ by up to a fifth where it has a small share of a busy core: the middle of three counts.
PROFILES = 3

# What is set, and by what factor the first peer is slower.
CONFIGURATIONS = {
    "4 x 1": (["pipeline.replicas=1"], 1),
    "4 x 2": (["pipeline.replicas=2"], 1),
    "4 x 3": (["pipeline.replicas=3"], 1),
    "4 x 2, boundaries of 96 numbers": (["pipeline.replicas=2", "boundary.width=96"], 1),
    "4 x 2, one peer at half speed": (["pipeline.replicas=2"], 2),
}


class Calm(Bench):
    """A swarm to which nothing happens."""

    def share_of(self, number):
        return self.options.share / (self.options.slower if number == 0 else 1)

    def speed_measured(self):
        self.fill()
        self.wait(until=lambda: len(self.steps) >= self.options.settle)
        since, until, _ = self.part("calm", lambda: self.wait(self.options.calm))
        return self.speed(since, until)


def said_by(options, command, *more, share=None):
    """What a command prints, with its share of a core if it is given one."""
    words = [str(options.trestle), command, str(options.run), *more]
    words += [word for change in options.set for word in ("--set", change)]
    enter = None if share is None else lambda: share.take(os.getpid())
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(words, preexec_fn=enter, env=environment, check=True, capture_output=True, text=True).stdout


def profile(options):
    """The reach of such a device, and the words that describe it."""
    share = Share("profile", options.share)
    try:
        device = said_by(options, "profile", "--threads", "1", share=share)
    finally:
        share.remove()
    return next(float(line.split("=")[1]) for line in device.splitlines() if line.startswith("reach")), device


def forecast(options, folder):
    devices = [profile(options) for _ in range(PROFILES)]
    reach, device = sorted(devices)[PROFILES // 2]
    group = '[[group]]\nname = "{}"\ncount = {}\ndevice = "{}"\nup = "100Gbit"\ndown = "100Gbit"\nrtt = "0.2ms"\n'
    slower = device.replace("[device.mine]", "[device.slower]").replace(f"reach = {reach:.4f}", f"reach = {reach / options.slower}")
    fleet = folder / "fleet.toml"
    fleet.write_text(group.format("slower", 1, "slower") + group.format("peers", 100, "mine") + device + slower)
    if options.slower == 1:
        fleet.write_text(group.format("peers", 100, "mine") + device)
    plan = json.loads(said_by(options, "plan", "--fleet", str(fleet), "--json"))
    return plan["forecast"]


def plans(options, folder):
    """How long plans take: for the published fleet, and for ten thousand peers of ten kinds."""
    kinds = ["rtx-4090", "rtx-4090", "rtx-4090", "rtx-5090", "rtx-5090", "a100-40", "a100-80", "m2-ultra", "l4", "h100"]
    group = '[[group]]\nname = "{0}"\ncount = 1000\ndevice = "{1}"\nup = "{0}50Mbit"\ndown = "{0}50Mbit"\n'
    fleet = folder / "fleet.toml"
    fleet.write_text("".join(group.format(at + 1, kind) for at, kind in enumerate(kinds)))
    large = ["pipeline.replicas=111", f"pipeline.stage_layers={[1] * 90}", "boundary.form=resbm", "boundary.encoder_width=2304"]
    small = ["pipeline.replicas=3", "optimizer.kind=adamw"]
    for name, path, changes, bound in (
        ("48 peers", "fleets/orion.toml", small, "less than 1 s"),
        ("10,000 peers", fleet, large, "less than 10 s"),
    ):
        words = [str(options.trestle), "plan", "runs/100b.toml", "--fleet", str(path)]
        words += [word for change in changes for word in ("--set", change)]
        began = time.monotonic()
        subprocess.run(words, check=True, capture_output=True)
        print(json.dumps({"name": f"plan of {name}", "seconds": round(time.monotonic() - began, 2), "bound": bound}), flush=True)


def main():
    parser = arguments()
    parser.add_argument("--share", type=float, default=0.1, help="part of a core that each peer trains with")
    parser.add_argument("--settle", type=int, default=20, help="steps before tokens are counted")
    parser.add_argument("--calm", type=float, default=60.0, help="seconds in which tokens are counted")
    parser.add_argument("--only", action="append", help="this configuration alone")
    options = parser.parse_args()
    set_for_all = options.set
    for name, (changes, slower) in CONFIGURATIONS.items():
        if options.only and name not in options.only:
            continue
        options.set, options.slower = [*set_for_all, *changes], slower
        options.replicas = next(int(change.split("=")[1]) for change in changes if "replicas" in change)
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            expected = forecast(options, folder)
            swarm = Calm(options, folder)
            try:
                real = swarm.speed_measured()
            finally:
                swarm.end()
                for life in swarm.lives:
                    life.share.remove()
        tokens = expected["pace"]["tokens_per_second"]
        print(json.dumps({"name": name, "forecast": round(tokens), "real": round(real), "ratio": round(tokens / real, 3)}), flush=True)
    if not options.only:
        with tempfile.TemporaryDirectory() as temporary:
            plans(options, pathlib.Path(temporary))


if __name__ == "__main__":
    sys.exit(main())
