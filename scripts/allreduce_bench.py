"""Times an all-reduce among four processes on loopback: ours (which commits), gloo's, and hivemind's.

usage: allreduce_bench.py ours TRESTLE PARAMETERS [CODEC]     median seconds of a committed outer step
       allreduce_bench.py memory TRESTLE [CODEC]              what a parameter more costs a replica, in bytes
       allreduce_bench.py gloo PARAMETERS                     needs torch
       allreduce_bench.py hivemind PARAMETERS                 needs hivemind 1.1.12
Prints one line of JSON.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

PEERS = 4
ROUNDS = 9


def ours(trestle, parameters, codec="f32"):
    command = [trestle, "rehearse", "--replicas", str(PEERS), "--rounds", str(ROUNDS), "--json"]
    command += ["--parameters", str(parameters), "--codec", codec]
    if codec not in ("f32", "bf16"):
        command += ["--rule", "nesterov" if codec == "int8" else "plain"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    events = [json.loads(line) for line in out.splitlines()]
    return [event["seconds"] for event in events if event["event"] == "outer" and event["verdict"] == "committed"]


def peak_bytes(pid):
    """Peak resident memory of a process so far; 0 once it is gone."""
    try:
        for line in open(f"/proc/{pid}/status", encoding="ascii"):
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def replica_memory(trestle, parameters, codec):
    command = [trestle, "rehearse", "--replicas", "3", "--rounds", "5", "--json", "--parameters", str(parameters)]
    command += ["--codec", codec, "--rule", "plain"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    pids, most = [], 0
    for line in run.stdout:
        event = json.loads(line)
        if event["event"] == "replica":
            pids.append(event["pid"])
        most = max([most, *(peak_bytes(pid) for pid in pids)])
    run.wait()
    return most


def memory(trestle, codec="bf16"):
    """The slope between two sizes, so that what a process needs anyway drops out."""
    small, large = 8 << 20, 24 << 20
    slope = (replica_memory(trestle, large, codec) - replica_memory(trestle, small, codec)) / (large - small)
    print(json.dumps({"what": "memory", "codec": codec, "bytes_a_parameter": slope, "multiple_of_f32": slope / 4}))


def gloo_peer(rank, parameters, port, times):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=PEERS)
    tensor = torch.rand(parameters)
    for _ in range(ROUNDS):
        dist.barrier()
        began = time.monotonic()
        dist.all_reduce(tensor)
        tensor /= PEERS
        dist.barrier()
        if rank == 0:
            times.put(time.monotonic() - began)
    dist.destroy_process_group()


def hivemind_peer(rank, parameters, first, times, gate, ready):
    import hivemind
    import torch

    torch.set_num_threads(1)
    initial = [] if rank == 0 else [first.get()]
    dht = hivemind.DHT(initial_peers=initial, host_maddrs=["/ip4/127.0.0.1/tcp/0"], start=True)
    if rank == 0:
        address = str(dht.get_visible_maddrs()[0])
        for _ in range(PEERS - 1):
            first.put(address)
    averager = hivemind.averaging.DecentralizedAverager(
        [torch.rand(parameters)], dht, prefix="bench", target_group_size=PEERS, min_group_size=PEERS,
        min_matchmaking_time=2.0, request_timeout=2.0, start=True,
    )
    done = 0
    while done < ROUNDS:
        gate.wait()
        control = averager.step(wait=False, require_trigger=True, timeout=60, allow_retries=True,
                                scheduled_time=hivemind.utils.get_dht_time() + 3.0)
        time.sleep(4.0)
        gate.wait()
        began = time.monotonic()
        control.allow_allreduce()
        try:
            good = control.result(timeout=60) is not None
        except Exception as error:  # a round in which the group did not form is not a round
            print(f"peer {rank}: {error!r}", file=sys.stderr)
            good = False
        gate.wait()
        if rank == 0 and good:
            times.put(time.monotonic() - began)
        done += 1
    ready.wait()
    averager.shutdown()
    dht.shutdown()


def measure(target, arguments):
    times = multiprocessing.Queue()
    peers = [multiprocessing.Process(target=target, args=(rank, *arguments(times))) for rank in range(PEERS)]
    for peer in peers:
        peer.start()
    for peer in peers:
        peer.join(300)
    found = []
    while not times.empty():
        found.append(times.get())
    return found


def main():
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "memory":
        return memory(*arguments)
    if what == "ours":
        parameters = int(arguments[1])
        times = ours(arguments[0], parameters, *arguments[2:])
    elif what == "gloo":
        parameters = int(arguments[0])
        times = measure(gloo_peer, lambda times: (parameters, 29533, times))
    else:
        parameters = int(arguments[0])
        first, gate, ready = multiprocessing.Queue(), multiprocessing.Barrier(PEERS), multiprocessing.Barrier(PEERS)
        times = measure(hivemind_peer, lambda times: (parameters, first, times, gate, ready))
    # The first rounds open connections and take memory.
    steady = sorted(times[2:])
    print(json.dumps({"what": what, "parameters": parameters, "rounds": len(steady), "codec": arguments[2] if len(arguments) > 2 else "f32",
                      "median_seconds": statistics.median(steady), "best": steady[0], "worst": steady[-1]}))


if __name__ == "__main__":
    main()
