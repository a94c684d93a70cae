"""Measures what a swarm loses while its replicas are killed and replaced, and how fast others join.

usage: churn_bench.py TRESTLE [RUN.toml] [--share 0.1] [--calm 60] [--kills 6] [--every 20] [--joins 3] [--replicas 3]
                      [--steps N] [--data FILE] [--set KEY=VALUE] [--seed 1] [--dir DIR]

One swarm of processes on this computer goes through three parts. Each peer has --share of a core to train with, given by a
control group (needs root), so that the peers and not the cores of this computer are what training waits for, and who is gone
is gone with what it could do. A program that is starting has a whole core; its group begins when it has a place.

calm   nothing happens for --calm seconds
kills  every --every seconds a replica, drawn from the seed, gets SIGKILL; a new peer, with a new key and an empty folder, is
       started one second later and asks for a place in that stage
joins  a replica is killed; 5 s after it was removed a new peer is started

Prints one line of JSON: {tokens_per_second_calm, tokens_per_second_kills, ratio, capacity, of_capacity, capacity_of_processes,
throttled, kills: [...], joins: [...]}; without kills, only `joins` is in it. `capacity` is the mean over time of the part of its
replicas that the stage with the fewest has, where a replica counts from its first forward to its death; `of_capacity` is ratio /
capacity, the figure for the bound. In `capacity_of_processes` a replica counts from its first instruction. `throttled` is the part
of their time in which peers waited for their share. Seconds of a kill count from the signal: suspected, removed, redo (its work is
leased again), redone_first and redone (the first and the last of it came back). Seconds of a join count from the start of the
process: placed, fetching (its state is offered), training (the first forward), trained (the first backward, whose receipt credits it).

Signals only processes that it has started itself.
"""

import json
import os
import pathlib
import sys
import tempfile
import threading
import time

from chaos import Swarm, arguments

REPLACE_WAIT = 1.0
# Long enough that a period's share is a few computations' worth, short beside a microbatch.
PERIOD_US = 20_000
# Other work on the computer shall not take from what a peer is given.
WEIGHT = 8
GROUPS = pathlib.Path("/sys/fs/cgroup")


class Share:
    """A control group that gives its processes a part of a core."""

    def __init__(self, name, share):
        version_1 = (GROUPS / "cpu").is_dir()
        self.folder = (GROUPS / "cpu" if version_1 else GROUPS) / f"trestle-{os.getpid()}-{name}"
        self.folder.mkdir()
        quota = int(PERIOD_US * share)
        if version_1:
            (self.folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota))
            (self.folder / "cpu.shares").write_text(str(1024 * WEIGHT))
        else:
            (self.folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
            (self.folder / "cpu.weight").write_text(str(100 * WEIGHT))

    def take(self, pid):
        (self.folder / "cgroup.procs").write_text(str(pid))

    def throttled(self):
        """Periods in which its processes had to wait, and all in which they ran."""
        lines = (line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        figures = {name: int(value) for name, value in lines}
        return figures["nr_throttled"], figures["nr_periods"]

    def remove(self):
        self.folder.rmdir()


class Tail:
    """Stamps the lines of an event log with the time at which they are seen."""

    def __init__(self, path):
        self.path, self.file = path, None

    def read(self):
        if self.file is None and self.path.exists():
            self.file = self.path.open()
        while self.file is not None:
            at = self.file.tell()
            line = self.file.readline()
            if not line.endswith("\n"):
                self.file.seek(at)
                return
            yield json.loads(line)["event"]


class Life:
    """A peer: its place, its times, and what it is given."""

    def __init__(self, process, stage, share, folder):
        self.process, self.stage, self.share = process, stage, share
        self.began, self.died, self.seen, self.bytes = time.monotonic(), None, {}, 0
        self.tail = Tail(folder / process.name / "worker" / "events.jsonl")

    def since_began(self):
        return {"bytes": self.bytes, **{what: round(at - self.began, 2) for what, at in self.seen.items()}}

    def read(self, lines):
        for line in lines:
            if not line.endswith("}\n"):
                # The last line of a process that was killed may be cut short.
                return
            standing = json.loads(line)
            if standing["event"] == "placed":
                self.share.take(self.process.child.pid)
            if standing["event"] == "fetching":
                self.bytes = standing["bytes"]
            self.seen.setdefault(standing["event"], time.monotonic())


class Bench(Swarm):
    def __init__(self, options, folder):
        super().__init__(options, folder)
        self.lives, self.passed, self.kills, self.joins, self.steps = [], {}, [], [], []
        self.number, self.coordinator_log = 0, Tail(folder / "run" / "coordinator" / "events.jsonl")

    def begin(self, stage):
        """Starts a new peer, with its share of a core, and follows it."""
        peer = self.join(self.number, stage)
        life = Life(peer, stage, Share(peer.name, self.share_of(self.number)), self.folder)
        self.number += 1
        threading.Thread(target=life.read, args=(peer.child.stdout,), daemon=True).start()
        self.lives.append(life)
        return life

    def share_of(self, number):
        """The part of a core that a peer is given."""
        return self.options.share

    def joined_with(self):
        return ["--json"]

    def look(self):
        """Reads all logs; a moment's sleep."""
        now = time.monotonic()
        for event in self.coordinator_log.read():
            self.hear(now, event)
        for life in self.lives:
            for event in life.tail.read():
                self.hear_worker(now, life, event)
        time.sleep(0.02)

    def hear(self, now, event):
        if "Step" in event:
            self.steps.append((now, event["Step"]["tokens"]))
        kill = self.kills[-1] if self.kills else None
        for name, what in (("Suspected", "suspected"), ("Removed", "removed"), ("Redo", "redo")):
            if name in event and kill is not None:
                kill.setdefault(what, now)
                if name == "Redo":
                    kill["count"] = kill.get("count", 0) + event["Redo"]["count"]

    def hear_worker(self, now, life, event):
        computed = event.get("Computed") if isinstance(event, dict) else None
        if computed is None or computed["task"] != "Backward":
            return
        life.seen.setdefault("trained", now)
        index = computed["microbatch"]["index"]
        self.passed[life.stage, index] = self.passed.get((life.stage, index), 0) + 1
        # What passes the first stage a second time was lost and is back.
        if life.stage == 0 and self.passed[0, index] > 1 and self.kills and "redo" in self.kills[-1]:
            self.kills[-1].setdefault("redone_first", now)
            self.kills[-1]["redone"] = now

    def wait(self, seconds=None, until=None):
        end = time.monotonic() + (seconds if seconds is not None else 120)
        while time.monotonic() < end and not (until is not None and until()):
            if self.done() is not None or not self.coordinator.runs():
                raise SystemExit("the run ended too soon: give it more --steps")
            self.look()

    def kill_one(self):
        there = [life for life in self.lives if life.died is None and "trained" in life.seen]
        victim = there[self.draws.randrange(len(there))]
        self.say(f"kill {victim.process.name} of stage {victim.stage}")
        victim.process.kill()
        victim.died = time.monotonic()
        self.kills.append({"at": victim.died, "stage": victim.stage})
        return victim

    def measure(self):
        stages, replicas = self.fill()
        calm = self.part("calm", lambda: self.wait(self.options.calm))
        harmed = self.part("kills", self.kill_again_and_again)
        killed = len(self.kills)
        self.wait(self.options.every)
        for _ in range(self.options.joins):
            self.join_one()
        return self.report(calm, harmed, killed, replicas, stages)

    def fill(self):
        """Starts a peer for each place, and waits until ten steps are taken; gives the numbers of stages and replicas."""
        self.serve()
        spec = json.loads((self.folder / "run" / "spec.json").read_text())["spec"]
        stages, replicas = len(spec["pipeline"]["stage_layers"]), spec["pipeline"]["replicas"]
        for number in range(stages * replicas):
            self.begin(number % stages)
        self.wait(until=lambda: len(self.steps) >= 10)
        return stages, replicas

    def part(self, name, does):
        self.say(name)
        since = time.monotonic()
        before = self.throttled()
        does()
        after = self.throttled()
        part = [b - a for a, b in zip(before, after)]
        return since, time.monotonic(), part[0] / max(part[1], 1)

    def throttled(self):
        return [sum(figures) for figures in zip(*(life.share.throttled() for life in self.lives))]

    def kill_again_and_again(self):
        for _ in range(self.options.kills):
            victim = self.kill_one()
            self.wait(REPLACE_WAIT)
            self.begin(victim.stage)
            self.wait(self.options.every - REPLACE_WAIT)

    def join_one(self):
        victim = self.kill_one()
        self.wait(until=lambda: "removed" in self.kills[-1])
        self.wait(5.0)
        life = self.begin(victim.stage)
        self.wait(until=lambda: "trained" in life.seen)
        self.joins.append(life)
        self.wait(5.0)

    def report(self, calm, harmed, killed, replicas, stages):
        joins = {"joins": [life.since_began() for life in self.joins]}
        if killed == 0:
            return joins
        speeds = [self.speed(*part[:2]) for part in (calm, harmed)]
        ratio = speeds[1] / speeds[0]
        capacity, of_processes = (self.capacity(harmed, begins, replicas, stages) for begins in (trains, runs))
        return {
            "tokens_per_second_calm": round(speeds[0]),
            "tokens_per_second_kills": round(speeds[1]),
            "ratio": round(ratio, 3),
            "capacity": round(capacity, 3),
            "of_capacity": round(ratio / capacity, 3),
            "capacity_of_processes": round(of_processes, 3),
            "throttled": [round(part[2], 3) for part in (calm, harmed)],
            "kills": [since_killed(kill) for kill in self.kills[:killed]],
            **joins,
        }

    def speed(self, since, until):
        return sum(tokens for at, tokens in self.steps if since <= at < until) / (until - since)

    def capacity(self, part, begins, replicas, stages):
        """The mean over time of the part of its replicas that the stage with the fewest has."""
        since, until = part[:2]
        beats = [since + (until - since) * beat / 1000 for beat in range(1000)]
        there = lambda life, at: begins(life) <= at < (life.died or until)
        fewest = lambda at: min(sum(there(life, at) for life in self.lives if life.stage == stage) for stage in range(stages))
        return sum(min(fewest(at), replicas) for at in beats) / len(beats) / replicas


def since_killed(kill):
    return {what: at if what in ("stage", "count") else round(at - kill["at"], 2) for what, at in kill.items() if what != "at"}


def trains(life):
    return life.seen.get("training", float("inf"))


def runs(life):
    return life.began


def main():
    parser = arguments()
    parser.add_argument("--share", type=float, default=0.1, help="part of a core that each peer trains with")
    parser.add_argument("--calm", type=float, default=60.0, help="seconds without harm")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills")
    parser.add_argument("--joins", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.dir or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(options, folder)
        try:
            print(json.dumps(bench.measure()))
        finally:
            bench.end()
            for life in bench.lives:
                life.share.remove()


if __name__ == "__main__":
    sys.exit(main())
