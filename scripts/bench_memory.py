"""Compares the memory of each worker of a run with the sum that `trestle inspect` writes down beforehand.

usage: bench_memory.py TRESTLE FOLDER

A process that computes holds libtorch, its kernels and its thread's buffers before any model: that base is measured with
a model of a few kilobytes, and both sides are differences to it. The peak of resident memory is the operating system's.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

RUN = "runs/tiny.toml"
COMMON = ["training.warmup_steps=1", "data.source=generated", "data.tokens=1000000", "evaluation.every=0", "checkpoint.every=0"]
SIZES = {
    "base": ["model.width=32", "model.heads=2", "model.kv_heads=1", "model.ffn_width=32", "boundary.width=8",
             "boundary.encoder_width=8", "model.sequence_len=8", "pipeline.microbatch_size=1"],
    "graph": ["model.width=512", "model.heads=8", "model.kv_heads=4", "model.ffn_width=1376", "boundary.width=64",
              "boundary.encoder_width=128"],
    "input": ["model.width=512", "model.heads=8", "model.kv_heads=4", "model.ffn_width=1376", "boundary.width=64",
              "boundary.encoder_width=128", "pipeline.retain=input"],
}  # fmt: skip


def flags(size):
    return [word for value in COMMON + SIZES[size] for word in ("--set", value)]


def peaks(trestle, folder, size):
    command = [trestle, "train", RUN, "--dir", str(folder / size), "--json", "--steps", "4", *flags(size)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    found = {}
    while run.poll() is None:
        for child in children(run.pid):
            try:
                words = pathlib.Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                status = pathlib.Path(f"/proc/{child}/status").read_text(encoding="utf-8")
            except (FileNotFoundError, ProcessLookupError):
                continue
            lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
            if b"--stage" in words and lines:
                stage = int(words[words.index(b"--stage") + 1])
                found[stage] = max(found.get(stage, 0), int(lines[0].split()[1]) * 1024)
        time.sleep(0.05)
    if run.returncode != 0:
        sys.exit(run.stderr.read().decode())
    return found


def children(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            text = pathlib.Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        found += text.split()
    return found


def sums(trestle, size):
    output = subprocess.run([trestle, "inspect", RUN, "--json", *flags(size)], check=True, capture_output=True)
    report = json.loads(output.stdout)
    return {stage["stage"]: stage["memory_total"] for stage in report["stages"]}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    trestle, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    base_peaks, base_sums = peaks(trestle, folder, "base"), sums(trestle, "base")
    for size in ("graph", "input"):
        measured, paper = peaks(trestle, folder, size), sums(trestle, size)
        for stage in sorted(paper):
            got = measured[stage] - base_peaks[stage]
            want = paper[stage] - base_sums[stage]
            print(
                f"| memory of stage {stage}, retain {size} | {got / 2**20:.0f} MiB | sum on paper {want / 2**20:.0f} MiB | "
                f"{got / want:.2f}x | 0.90x to 1.10x |"
            )


if __name__ == "__main__":
    main()
