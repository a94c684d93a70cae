"""Turns the output of a benchmark into a row of BENCHMARKS.md. Called by bench.sh.

usage: bench_rows.py stage DTYPE OURS THEIRS | message FILE | swarm OURS... THEIRS...
       bench_rows.py codec FILE | allreduce FILE | outer OVERLAPPED... WAITING... | churn KILLS JOINS
"""

import json
import statistics
import sys

# Tokens of the timed stage's microbatch: 4 samples of 256.
STAGE_TOKENS = 1024


def objects(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.startswith("{")]


def stage(dtype, ours, theirs):
    ours = [1000 * STAGE_TOKENS / run["median_ms"] for run in objects(ours)]
    theirs = [1000 * STAGE_TOKENS / run["median_ms"] for run in objects(theirs)]
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(
        f"| one stage, {dtype}, 2 threads | {statistics.median(ours):.0f} tokens/s | "
        f"PyTorch {statistics.median(theirs):.0f} tokens/s | {ratio:.2f}x | at least 0.95x |"
    )


def message(path):
    with open(path, encoding="utf-8") as file:
        print(f"message of 2.2 MB over loopback, against bare iroh, at most 1.3x: {json.dumps(json.load(file))}")


def swarm(paths):
    half = len(paths) // 2
    ours, theirs = [], []
    shares = []
    bytes_per_token = []
    for path in paths[:half]:
        steps = [event for event in objects(path) if event["event"] == "step"][5:]
        seconds = sum(step["wall_seconds"] for step in steps)
        ours.append(sum(step["tokens"] for step in steps) / seconds)
        bytes_per_token.append(sum(step["wire_bytes_per_token"] for step in steps) / len(steps))
        for stage in range(len(steps[0]["stages"])):
            mine = [step["stages"][stage] for step in steps]
            wall = sum(step["wall_seconds"] for step in mine)
            compute = sum(step["compute_seconds"] for step in mine) / wall
            serialise = sum(step["serialise_seconds"] for step in mine) / wall
            shares.append((stage, compute - serialise, serialise, 1 - compute))
    for path in paths[half:]:
        theirs.append(objects(path)[0]["tokens_per_second"])
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(
        f"| swarm of 4 processes, async | {statistics.median(ours):.0f} tokens/s | "
        f"PyTorch, 1 process, 2 threads: {statistics.median(theirs):.0f} tokens/s | {ratio:.2f}x | at least 0.85x |"
    )
    for stage, compute, serialise, wait in shares[: len(shares) // half]:
        print(f"  stage {stage}: compute {compute:.1%}, serialise {serialise:.1%}, wait and transfer {wait:.1%}")
    print(f"  {statistics.median(bytes_per_token):.0f} bytes sent per token, all stages, counted under QUIC")


def codec(path):
    for row in objects(path):
        print(
            f"| {row['codec'].lower()} | {row['encode_gb_s']:.2f} GB/s | {row['decode_gb_s']:.2f} GB/s | {row['bits']:.5f} | "
            f"{row['rest_x']:.2f}x | {row['most_x'] - row['rest_x']:.2f}x |"
        )


def allreduce(path):
    found = {}
    for row in objects(path):
        name = f"ours, {row['codec']}" if row["what"] == "ours" else row["what"]
        found.setdefault(name, []).append(row["median_seconds"])
        parameters = row["parameters"]
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name in [name for name in medians if name.startswith("ours")]:
        ratios = [f"{medians[name] / medians['gloo']:.2f}x of gloo"]
        if "hivemind" in medians:
            ratios.append(f"{medians['hivemind'] / medians[name]:.2f}x faster than hivemind")
        print(f"| {parameters / 2**20:.0f}M, {name} | {medians[name]:.3f} s | " + "; ".join(ratios) + " |")
    for name in [name for name in medians if not name.startswith("ours")]:
        print(f"| {parameters / 2**20:.0f}M, {name} | {medians[name]:.3f} s | |")


def outer(paths):
    half = len(paths) // 2
    for name, group in [("beside training", paths[:half]), ("waited for", paths[half:])]:
        ends = [next(event for event in objects(path) if event["event"] == "finished") for path in group]
        took = [event["seconds"] for path in group for event in objects(path) if event["event"] == "outer"]
        sync = statistics.median(end["split"]["sync"] for end in ends)
        speed = statistics.median(end["tokens_per_second"] for end in ends)
        utilisation = statistics.median(end["utilisation"] for end in ends)
        print(
            f"| {name} | {statistics.median(took):.3f} s | {sync:.2%} | {utilisation:.1%} | {speed:.0f} tokens/s |"
        )


def churn(kills, joins):
    found = objects(kills)[0]
    print(
        f"| {found['tokens_per_second_calm']} tokens/s | {found['tokens_per_second_kills']} tokens/s | {found['ratio']:.2f}x | "
        f"{found['capacity']:.2f} | {found['of_capacity']:.2f}x | at least 0.9x |"
    )
    redone = [kill for kill in found["kills"] if "redone" in kill]
    middle = lambda figures, what: statistics.median(figure[what] for figure in figures)
    ratios = [kill["redone"] / kill["removed"] for kill in redone]
    print(
        f"| {len(redone)} of {len(found['kills'])} kills | {middle(redone, 'suspected'):.1f} s | {middle(redone, 'removed'):.1f} s | "
        f"{middle(redone, 'redo'):.1f} s | {middle(redone, 'redone'):.1f} s | {statistics.median(ratios):.2f}x, {max(ratios):.2f}x | "
        "less than 2x |"
    )
    for name, path in (("as above", kills), ("less work in an outer step", joins)):
        lives = objects(path)[0]["joins"]
        parts = " | ".join(f"{middle(lives, what):.2f} s" for what in ("placed", "fetching", "training", "trained"))
        most = max(life["trained"] for life in lives)
        print(f"| {name} | {middle(lives, 'bytes') / 2**20:.1f} MiB | {parts} | {most:.2f} s | less than 3 s + state / link |")


def forecast(path):
    for found in objects(path):
        if "seconds" in found:
            print(f"| {found['name']} | {found['seconds']:.2f} s | {found['bound']} |")
        else:
            figures = f"{found['forecast']} tokens/s | {found['real']} tokens/s | {found['ratio']:.2f}x"
            print(f"| {found['name']} | {figures} | 0.9x to 1.1x |")


def main():
    match sys.argv[1:]:
        case ["stage", dtype, ours, theirs]:
            stage(dtype, ours, theirs)
        case ["message", path]:
            message(path)
        case ["swarm", *paths] if len(paths) >= 2 and len(paths) % 2 == 0:
            swarm(paths)
        case ["codec", path]:
            codec(path)
        case ["allreduce", path]:
            allreduce(path)
        case ["forecast", path]:
            forecast(path)
        case ["churn", kills, joins]:
            churn(kills, joins)
        case ["outer", *paths] if len(paths) >= 2 and len(paths) % 2 == 0:
            outer(paths)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
