"""What spot preemptions cost: a table of played runs, in Markdown, and a picture of the worst.

usage: spot_table.py TRESTLE [--hours 3] [--seeds 3] [--inner-steps 50] [--picture FILE.svg]

Plays `runs/8b.toml` in 4 stages of 6 replicas on `fleets/spot.toml`, with the traces of 5, 10 and 25 % an hour, and on the same
machines on demand, which nobody takes back; 1.25 dollars an hour there, 0.50 for a spot machine while it is there.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = ["--replicas", "6"]
SET = {
    "pipeline.stage_layers": "[8, 8, 8, 8]",
    "pipeline.microbatches_per_step": "16",
    "pipeline.in_flight_max": "12",
    "optimizer.kind": "adamw",
    "sync.codec": "sparseloco",
}


def mean(rows, field):
    return sum(row[field] for row in rows) / len(rows)


def play(options, fleet, seeds, *more):
    words = [options.trestle, "simulate", str(ROOT / "runs/8b.toml"), "--fleet", str(fleet), "--for", f"{options.hours}h"]
    words += [*RUN, "--seeds", str(seeds), "--json", *more]
    changes = {**SET, "sync.inner_steps": str(options.inner_steps)}
    words += [word for field, value in changes.items() for word in ("--set", f"{field}={value}")]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trestle")
    parser.add_argument("--hours", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--inner-steps", type=int, default=50)
    parser.add_argument("--picture")
    options = parser.parse_args()
    spot = (ROOT / "fleets/spot.toml").read_text()
    print("| preemptions an hour | outages | peers there | tokens/s | forecast | done again | lost | $ a billion tokens |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "traces").symlink_to(ROOT / "fleets/traces")
        fleet = folder / "fleet.toml"
        for rate in ("", "05", "10", "25"):
            text = spot.replace("spot-10", f"spot-{rate}") if rate else spot.replace('trace = "traces/spot-10.csv"', "")
            fleet.write_text(text if rate else text.replace("price = 0.50", "price = 1.25"))
            drawn = ["--picture", options.picture] if rate == "25" and options.picture else []
            played = play(options, fleet, options.seeds if rate else 1, *drawn)
            rows = played["played"]
            name = f"{int(rate)} %, spot" if rate else "none, on demand"
            print(
                f"| {name} | {mean(rows, 'outages'):.1f} | {mean(rows, 'there'):.1%} | {mean(rows, 'tokens_per_second'):,.0f} "
                f"| {played['forecast']:,.0f} | {mean(rows, 'redone'):,.0f} of {mean(rows, 'tokens') / 8000:,.0f} "
                f"| {max(row['lost'] for row in rows)} | {mean(rows, 'price_per_billion'):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
