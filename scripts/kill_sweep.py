"""Kills one of four replicas at points spread over an outer step, and says whether the others agree.

usage: kill_sweep.py TRESTLE [--points 12] [--trials 3] [--parameters 1048576] [--codec f32] [--rule nesterov]

Each trial is a rehearsal of real processes on this computer. After some undisturbed outer steps, one replica gets SIGKILL
at a point of the next; the survivors must commit one result, or restore it and commit the next, and go on to the end.
Prints a line of JSON for each trial and one with the sums.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

UNDISTURBED = 4
ROUNDS = 8


def agreements(folder, replicas):
    """Digests that each replica went over to, by outer step."""
    found = {}
    for replica in replicas:
        log = pathlib.Path(folder) / f"replica-{replica}" / "events.jsonl"
        for line in log.read_text().splitlines():
            report = json.loads(line)["event"]
            report = report.get("Agreed") if isinstance(report, dict) else None
            if report:
                found.setdefault(report["outer"], {})[replica] = report["digest"]
    return found


def trial(options, point, victim):
    with tempfile.TemporaryDirectory() as folder:
        command = [options.trestle, "rehearse", "--json", "--dir", folder, "--replicas", str(options.replicas)]
        command += ["--rounds", str(ROUNDS), "--parameters", str(options.parameters)]
        command += ["--codec", options.codec, "--rule", options.rule]
        words = open(pathlib.Path(folder) / "words", "w")
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True)
        pids, rounds, killed_at, last = {}, [], None, time.monotonic()
        normal = None
        for line in run.stdout:
            event, now = json.loads(line), time.monotonic()
            if event["event"] == "replica":
                pids[event["replica"]] = event["pid"]
            if event["event"] != "outer":
                continue
            rounds.append({**event, "period": now - last})
            last = now
            if len(rounds) == UNDISTURBED:
                normal = statistics.median(r["period"] for r in rounds[1:])
                time.sleep(normal * point)
                os.kill(pids[victim], signal.SIGKILL)
                killed_at = time.monotonic()
        run.wait()
        survivors = [replica for replica in pids if replica != victim]
        agreed = agreements(folder, survivors)
        committed = {r["outer"] for r in rounds if r["verdict"] == "committed"}
        after = [r for r in rounds[UNDISTURBED:]]
        one = all(len(set(d.values())) == 1 and len(d) == len(survivors) for o, d in agreed.items() if o in committed)
        complete = all(len(agreed.get(outer, {})) == len(survivors) for outer in committed)
        slowest = max((r["period"] for r in after), default=0.0)
        next_commits = bool(after) and after[-1]["verdict"] == "committed" and len(after) == ROUNDS - UNDISTURBED
        return {
            "point": round(point, 3),
            "victim": victim,
            "normal_seconds": round(normal or 0.0, 3),
            "extra_seconds": round(slowest - (normal or 0.0), 3),
            "restored": sum(r["verdict"] == "restored" for r in rounds),
            "one_result": one and complete,
            "went_on": next_commits and run.returncode == 0 and killed_at is not None,
        }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trestle")
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=1 << 20)
    parser.add_argument("--codec", default="f32")
    parser.add_argument("--rule", default="nesterov")
    parser.add_argument("--extra-max", type=float, default=2.0)
    options = parser.parse_args()
    results = []
    for number in range(options.trials):
        for at in range(options.points):
            result = trial(options, (at + 0.5) / options.points, (at + number) % options.replicas)
            result["good"] = result["one_result"] and result["went_on"] and result["extra_seconds"] < options.extra_max
            print(json.dumps(result), flush=True)
            results.append(result)
    good = sum(result["good"] for result in results)
    extra = sorted(result["extra_seconds"] for result in results)
    print(json.dumps({"good": good, "of": len(results), "extra_median": extra[len(extra) // 2], "extra_max": extra[-1]}))
    return 0 if good == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
