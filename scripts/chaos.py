"""Runs a swarm of real processes on this computer, kills them again and again, and checks that the run is exact all the same.

usage: chaos.py TRESTLE [RUN.toml] [--replicas 3] [--kill-every 5:15] [--coordinator 0.2] [--freeze 10] [--term 0.2]
                [--steps N] [--data FILE] [--set KEY=VALUE] [--seed 1] [--dir DIR] [--no-faults] [--limit 1800]

Starts `trestle serve` and one `trestle join` for each place. Every A to B seconds one of them, drawn from the seed, gets
SIGKILL: the coordinator with the probability of --coordinator, else a peer (with the probability of --term it gets SIGTERM,
and with that of --freeze-share it is stopped for --freeze seconds instead). Who was killed is started again with its folder.
At the end the ledger is read; prints one line of JSON: {kills, coordinator_kills, terms, freezes, planned, credited, exact,
duplicates, redone, lost, steps, held_out, seconds}. Exit code 0 if the run ended by itself and is exact.

Signals only processes that it has started itself, by their number.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

# A peer or coordinator that was killed is started again after so many seconds, drawn between the two.
RESTART_WAIT = (0.2, 1.5)
# How long after the end of the coordinator peers may take to end by themselves.
END_WAIT = 20


class Process:
    """One process of the swarm, and those that took its place."""

    def __init__(self, name, command, words, environment, stdout):
        self.name, self.command, self.words = name, command, words
        self.environment, self.stdout = environment, stdout
        self.child, self.start_at, self.thaw_at, self.ended = None, 0.0, None, False

    def start(self, more=()):
        with open(self.words, "a") as words:
            stdout = subprocess.PIPE if self.stdout else subprocess.DEVNULL
            self.child = subprocess.Popen(
                [*self.command, *more], stdin=subprocess.PIPE, stdout=stdout, stderr=words, text=True, env=self.environment
            )
        self.start_at = None
        return self.child

    def runs(self):
        return self.child is not None and self.child.poll() is None

    def send(self, number):
        if self.runs():
            self.child.send_signal(number)

    def kill(self):
        self.send(signal.SIGKILL)
        if self.child is not None:
            self.child.wait()
        self.thaw_at = None


class Swarm:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.draws = random.Random(options.seed)
        self.counts = {"kills": 0, "coordinator_kills": 0, "terms": 0, "freezes": 0}
        self.ticket, self.peers, self.events, self.began, self.harm_at = None, [], [], time.monotonic(), None
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        prefix, address = self.where("coordinator")
        command = [*prefix, options.trestle, "serve", options.run, "--json", "--listen", f"{address}:0", "--dir", str(folder / "run")]
        for option, value in (("--replicas", options.replicas), ("--steps", options.steps), ("--data", options.data)):
            if value is not None:
                command += [option, str(value)]
        for value in options.set:
            command += ["--set", value]
        self.coordinator = Process("coordinator", command, folder / "coordinator.log", self.environment, True)

    def where(self, name):
        """What a process is started with, and the address on which it listens."""
        return [], "127.0.0.1"

    def joined_with(self):
        """Further words for each peer."""
        return []

    def say(self, words):
        print(f"{time.monotonic() - self.began:8.1f} {words}", file=sys.stderr, flush=True)

    def serve(self, more=()):
        child = self.coordinator.start(more)
        ticket = child.stdout.readline().strip()
        if not ticket.startswith("trestle1"):
            child.wait()
            raise SystemExit((self.folder / "coordinator.log").read_text() or "the coordinator printed no ticket")
        if self.ticket not in (None, ticket):
            raise SystemExit("the coordinator came back with another ticket")
        self.ticket = ticket
        threading.Thread(target=self.read, args=(child.stdout,), daemon=True).start()

    def read(self, lines):
        for line in lines:
            try:
                self.events.append(json.loads(line))
            except json.JSONDecodeError:
                # The last line of a process that was killed may be cut short.
                pass

    def join(self, number, stage):
        name = f"peer-{number}"
        prefix, address = self.where(name)
        command = [*prefix, self.options.trestle, "join", self.ticket, "--listen", f"{address}:0", "--threads", "1", "--tied"]
        command += ["--peak-flops", "1e9", "--dir", str(self.folder / name), "--stage", str(stage)]
        if self.options.data is not None:
            command += ["--data", str(self.options.data)]
        command += self.joined_with()
        peer = Process(name, command, self.folder / f"{name}.log", self.environment, "--json" in command)
        peer.start()
        self.peers.append(peer)
        return peer

    def done(self):
        finished = [event for event in self.events if event.get("event") == "finished"]
        return finished[-1]["outcome"] if finished else None

    def look_after(self, now):
        for peer in self.peers:
            if peer.thaw_at is not None and now >= peer.thaw_at:
                peer.send(signal.SIGCONT)
                peer.thaw_at = None
            if peer.start_at is not None:
                if now >= peer.start_at:
                    peer.start()
            elif not peer.runs() and self.done() is None:
                self.say(f"{peer.name} ended with {peer.child.returncode}; starting it again")
                peer.start_at = now + self.draws.uniform(*RESTART_WAIT)
        if self.coordinator.start_at is not None and now >= self.coordinator.start_at:
            self.serve(["--resume"])

    def disturb(self, now):
        """Does the harm that is due; called again and again once the first step is complete."""
        least, most = (float(part) for part in self.options.kill_every.split(":"))
        if self.harm_at is not None and now >= self.harm_at and not self.options.no_faults:
            self.harm(now)
        if self.harm_at is None or now >= self.harm_at:
            self.harm_at = now + self.draws.uniform(least, most)

    def harm(self, now):
        options, draw = self.options, self.draws.random
        if draw() < options.coordinator and self.coordinator.runs():
            self.say("kill coordinator")
            self.coordinator.kill()
            self.coordinator.start_at = now + self.draws.uniform(*RESTART_WAIT)
            self.counts["coordinator_kills"] += 1
            self.counts["kills"] += 1
            return
        there = [peer for peer in self.peers if peer.runs() and peer.thaw_at is None]
        if not there:
            return
        victim = there[self.draws.randrange(len(there))]
        kind = draw()
        if kind < options.term:
            self.say(f"terminate {victim.name}")
            victim.send(signal.SIGTERM)
            self.counts["terms"] += 1
        elif kind < options.term + options.freeze_share:
            self.say(f"freeze {victim.name}")
            victim.send(signal.SIGSTOP)
            victim.thaw_at = now + options.freeze
            self.counts["freezes"] += 1
        else:
            self.say(f"kill {victim.name}")
            victim.kill()
            victim.start_at = now + self.draws.uniform(*RESTART_WAIT)
            self.counts["kills"] += 1

    def start(self):
        self.serve()
        spec = json.loads((self.folder / "run" / "spec.json").read_text())["spec"]
        self.stages, self.replicas = len(spec["pipeline"]["stage_layers"]), spec["pipeline"]["replicas"]
        for number in range(self.stages * self.replicas):
            self.join(number, number % self.stages)

    def run(self):
        """Runs to the end, and gives what came of it."""
        self.start()
        deadline = time.monotonic() + self.options.limit
        while self.done() is None and time.monotonic() < deadline:
            now = time.monotonic()
            if self.coordinator.start_at is None and not self.coordinator.runs():
                break
            self.look_after(now)
            if any(event.get("event") == "step" for event in self.events):
                self.disturb(now)
            time.sleep(0.05)
        return self.finish()

    def finish(self):
        until = time.monotonic() + END_WAIT
        for process in [self.coordinator, *self.peers]:
            process.send(signal.SIGCONT)
            while process.runs() and self.done() is not None and time.monotonic() < until:
                time.sleep(0.05)
        seconds = time.monotonic() - self.began
        self.end()
        report = subprocess.run(
            [self.options.trestle, "inspect", "ledger", str(self.folder / "run"), "--json"], capture_output=True, text=True
        )
        ledger = json.loads(report.stdout) if report.returncode == 0 else {"exact": False, "stages": [], "planned": 0}
        of_stages = lambda figure: [stage[figure] for stage in ledger["stages"]]
        held_out = [event["loss"] for event in self.events if event.get("event") == "evaluated"]
        steps = {event["step"] for event in self.events if event.get("event") == "step"}
        return {
            **self.counts,
            "planned": ledger["planned"],
            "credited": of_stages("trained"),
            "exact": ledger["exact"],
            "duplicates": sum(of_stages("duplicate")),
            "redone": sum(of_stages("redone")),
            "lost": sum(of_stages("lost")),
            "steps": len(steps),
            "held_out": held_out[-1] if held_out else None,
            "outcome": self.done(),
            "seconds": round(seconds, 1),
        }

    def end(self):
        for process in [self.coordinator, *self.peers]:
            process.kill()


def is_exact(result):
    """Whether the run ended by itself with every microbatch of the plan trained once."""
    return result["exact"] and result["outcome"] == "Done" and all(it == result["planned"] for it in result["credited"])


def arguments():
    """The options of every swarm."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trestle")
    parser.add_argument("run", nargs="?", default="runs/demo.toml")
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=pathlib.Path, help="keep the folders there")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which it is given up")
    return parser


def main():
    parser = arguments()
    parser.add_argument("--kill-every", default="5:15", metavar="A:B")
    parser.add_argument("--coordinator", type=float, default=0.2, help="share of the kills that hit the coordinator")
    parser.add_argument("--term", type=float, default=0.2, help="share of the other harm that is SIGTERM")
    parser.add_argument("--freeze-share", type=float, default=0.2, help="share of the other harm that is a stop")
    parser.add_argument("--freeze", type=float, default=10.0, help="seconds of a stop")
    parser.add_argument("--no-faults", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.dir or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        swarm = Swarm(options, folder)
        try:
            result = swarm.run()
        finally:
            swarm.end()
    print(json.dumps(result))
    return 0 if is_exact(result) else 1


if __name__ == "__main__":
    sys.exit(main())
