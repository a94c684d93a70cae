"""Does one harm to one peer of a real swarm in network namespaces, and checks that the run is exact all the same.

usage: faults.py TRESTLE [RUN.toml] --fault KIND [--lasting 30] [--at-step 10] [--replicas 3] [--steps N] [--data FILE]
                 [--set KEY=VALUE] [--dir DIR] [--limit 1800]

KIND   what happens to the victim, the first replica of stage 1, for --lasting seconds
freeze    it is stopped (SIGSTOP), and then let go on
slow      it runs 50 ms of each second: a peer twenty times slower
cut       its link is down
cut-peer  no packet passes between it and the replica of the next stage that its work goes to
cut-twin  no packet passes between it and another replica of its own stage

Needs root and `ip`. Namespaces with names of their own are made and removed again: the victim and whoever may be the other end
of a cut have one each, everyone else has another, which routes between them. Signals only processes that it has started itself.

Prints one line of JSON: {fault, lasted, rerouted, removed, seated, late_duplicates, late_refused, planned, credited, exact,
duplicates, redone, lost, steps, held_out, outcome, seconds}. `rerouted` is how many microbatches went around someone, `removed` and
`seated` are how often the victim lost a place and took one in the running run; `late_duplicates` and `late_refused` are what others
counted as a duplicate of the victim's, or refused from it, from the beginning of the harm on. Exit code 0 if the run ended by
itself, after the harm, and is exact.
"""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from chaos import Swarm, arguments, is_exact

KINDS = ("freeze", "slow", "cut", "cut-peer", "cut-twin")
# What a slowed peer runs of each beat, and the beat.
RUNS, BEAT = 0.05, 1.0
# 198.18.0.0/15 is kept for such tests (RFC 2544). The last number but one is the namespace's.
ADDRESS = "198.18.{}.{}"
HUB = 0


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: ip {' '.join(words)}: {done.stderr.strip()}\n\nhint: this needs root, and a Linux with namespaces")


class Namespaces:
    """A hub, and leaves behind it, which are made when they are asked for."""

    def __init__(self):
        self.made = {}

    def __enter__(self):
        try:
            self.make(HUB)
            ip("-n", self.made[HUB], "address", "add", self.address(HUB) + "/32", "dev", "lo")
            ip("netns", "exec", self.made[HUB], "sysctl", "-qw", "net.ipv4.ip_forward=1")
        except SystemExit:
            self.__exit__()
            raise
        return self

    def make(self, place):
        # The number of this process keeps two swarms on one computer apart.
        name = f"trestle-{os.getpid()}-{place}"
        ip("netns", "add", name)
        self.made[place] = name
        ip("-n", name, "link", "set", "lo", "up")

    def link(self, leaf):
        self.make(leaf)
        hub, name = self.made[HUB], self.made[leaf]
        ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"leaf{leaf}", "netns", hub)
        ip("-n", hub, "address", "add", ADDRESS.format(leaf, 1) + "/24", "dev", f"leaf{leaf}")
        ip("-n", name, "address", "add", self.address(leaf) + "/24", "dev", "eth0")
        ip("-n", hub, "link", "set", f"leaf{leaf}", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "route", "add", "default", "via", ADDRESS.format(leaf, 1))

    def __exit__(self, *_):
        for name in self.made.values():
            subprocess.run(["ip", "netns", "del", name], check=False)

    def address(self, place):
        return ADDRESS.format(place, 1 if place == HUB else 2)

    def prefix(self, place):
        if place not in self.made:
            self.link(place)
        return ["ip", "netns", "exec", self.made[place]]

    def link_of(self, leaf, state):
        """Takes a leaf's link down or up; at the hub's end, for there no route is lost with it."""
        ip("-n", self.made[HUB], "link", "set", f"leaf{leaf}", state)

    def between(self, one, other, word):
        """Lets the hub drop what two leaves send each other (`add`), or pass it again (`del`)."""
        for source, target in ((one, other), (other, one)):
            rule = ("from", self.address(source), "to", self.address(target), "blackhole")
            ip("-n", self.made[HUB], "rule", word, *rule)


class Harmed(Swarm):
    """A swarm with one harm in it."""

    def __init__(self, options, folder, namespaces):
        self.namespaces = namespaces
        super().__init__(options, folder)
        self.counts = {"fault": options.fault, "lasted": None}
        self.harmed_at, self.beat_at, self.sizes = None, 0.0, {}

    def where(self, name):
        place = self.leaf(int(name.removeprefix("peer-"))) if name.startswith("peer-") else HUB
        return self.namespaces.prefix(place), self.namespaces.address(place)

    def leaf(self, number):
        """The victim has a leaf, and so has everyone from whom it may be cut off: who that is shows when they have places."""
        of = {"cut-peer": 2, "cut-twin": 1}.get(self.options.fault)
        return 1 + number if number == 1 or number % self.stages == of else HUB

    def cut_off(self):
        """The leaf of the other end: the replica of the next stage that the victim's work goes to, or one of its own stage."""
        if self.options.fault == "cut-twin":
            return self.leaf(1 + self.stages)
        numbers = range(2, len(self.peers), self.stages)
        return next(self.leaf(number) for number in numbers if self.replica(number) == self.replica(1))

    def replica(self, number):
        """The replica that a peer is since the beginning. Without harm a microbatch passes the same replica of all stages."""
        key = json.loads(self.log_of(number).open().readline())["peer"]
        for line in (self.folder / "run" / "coordinator" / "events.jsonl").open():
            for peer, place in json.loads(line)["event"].get("Planned", {}).get("members", []):
                if peer == key:
                    return place["replica"]
        raise SystemExit(f"peer-{number} has no place")

    def victim(self):
        return self.peers[1]

    def disturb(self, now):
        if self.harmed_at is None:
            if any(event.get("event") == "step" and event["step"] >= self.options.at_step for event in self.events):
                self.say(f"{self.options.fault}: begins")
                self.sizes = {path: path.stat().st_size for path in self.logs()}
                self.harmed_at = now
                self.begin()
        elif self.counts["lasted"] is None:
            if now >= self.harmed_at + self.options.lasting:
                self.mend()
                self.say(f"{self.options.fault}: is over")
                self.counts["lasted"] = round(now - self.harmed_at, 1)
            elif self.options.fault == "slow":
                self.beat(now)

    def begin(self):
        match self.options.fault:
            case "freeze":
                self.victim().send(signal.SIGSTOP)
            case "slow":
                self.beat_at = time.monotonic()
            case "cut":
                self.namespaces.link_of(self.leaf(1), "down")
            case "cut-peer" | "cut-twin":
                self.namespaces.between(self.leaf(1), self.cut_off(), "add")

    def beat(self, now):
        if now >= self.beat_at:
            self.victim().send(signal.SIGCONT)
            time.sleep(RUNS)
            self.victim().send(signal.SIGSTOP)
            self.beat_at += BEAT

    def mend(self):
        match self.options.fault:
            case "freeze" | "slow":
                self.victim().send(signal.SIGCONT)
            case "cut":
                self.namespaces.link_of(self.leaf(1), "up")
            case "cut-peer" | "cut-twin":
                self.namespaces.between(self.leaf(1), self.cut_off(), "del")

    def logs(self):
        return sorted(self.folder.glob("*/*/events.jsonl"))

    def since_the_harm(self):
        """What has been logged since the harm began: by anyone of ways around, by everyone else of the victim."""
        key = json.loads(self.log_of(1).open().readline())["peer"]
        seen = collections.Counter()
        for path in self.logs():
            with path.open() as log:
                log.seek(self.sizes.get(path, 0))
                for line in log:
                    seen["rerouted"] += '"Rerouted"' in line
                    if key in line and path != self.log_of(1):
                        seen.update(kinds(json.loads(line)["event"], key))
        return seen

    def log_of(self, number):
        return self.folder / self.peers[number].name / "worker" / "events.jsonl"

    def finish(self):
        result = super().finish()
        seen = self.since_the_harm() if self.harmed_at is not None else collections.Counter()
        told = ("rerouted", "removed", "seated", "late_duplicates", "late_refused")
        return {**self.counts, **{kind: seen[kind] for kind in told}, **result}


def kinds(event, key):
    """What an event of another peer's log says of the victim."""
    for name, kind, whose in (
        ("Removed", "removed", "peer"),
        ("Seated", "seated", "peer"),
        ("Duplicate", "late_duplicates", "from"),
        ("Refused", "late_refused", "peer"),
    ):
        if isinstance(event, dict) and event.get(name, {}).get(whose) == key:
            yield kind


def main():
    parser = arguments()
    parser.add_argument("--fault", choices=KINDS, required=True)
    parser.add_argument("--lasting", type=float, default=30.0, help="seconds of the harm")
    parser.add_argument("--at-step", type=int, default=10, help="the step after which it begins")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Namespaces() as namespaces:
        folder = options.dir or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        swarm = Harmed(options, folder, namespaces)
        try:
            result = swarm.run()
        finally:
            swarm.end()
    print(json.dumps(result))
    return 0 if is_exact(result) and result["lasted"] is not None else 1


if __name__ == "__main__":
    sys.exit(main())
