#!/usr/bin/env python3
"""Runs every compiled model of a bundle on the board, traced and with the power sampled.

    python3 board/run.py [--only ID ...] [--idle 1.0]

Writes logs/ID/{benchmark.log, power.jsonl, vaitrace's files}. What has run is not run again: start it again after an
interruption. Python 3.8, standard library alone; needs `xdputil`, and `vaitrace` for the traces, on the path.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import power  # noqa: E402

RESULT = re.compile(r"FPS\s*=\s*(\S+)\s+number_of_frames\s*=\s*(\d+)\s+time\s*=\s*([0-9.]+)\s*seconds")
TRACE_SECONDS = 5


def md5(path):
    digest = hashlib.md5()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write(path, text):
    with open(path + ".part", "w") as handle:
        handle.write(text)
    os.replace(path + ".part", path)


def check_board(bundle, manifest):
    """Keep the answer of `xdputil query`; refuse a board that the models were not compiled for."""
    answer = subprocess.run(
        ["xdputil", "query"], check=True, universal_newlines=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout
    os.makedirs(os.path.join(bundle, "logs"), exist_ok=True)
    write(os.path.join(bundle, "logs", "xdputil_query.txt"), answer)
    found = [int(text, 16) for text in re.findall(r'"fingerprint"\s*:\s*"(0x[0-9a-fA-F]+)"', answer)]
    wanted = manifest["target"]["fingerprint"]
    if wanted is not None and int(wanted, 16) not in found:
        shown = ", ".join(hex(value) for value in found) or "none"
        raise SystemExit("the models are compiled for the DPU %s, this board has %s" % (wanted, shown))


def benchmark(command, log):
    """Run a command, its output into `log`; frames, seconds and the monotonic time of its result line."""
    result = None
    with open(log + ".part", "w") as handle:
        handle.write("+ " + " ".join(command) + "\n")
        process = subprocess.Popen(
            command, universal_newlines=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=1
        )
        for line in process.stdout:
            match = RESULT.search(line)
            if match:
                result = (int(match.group(2)), float(match.group(3)), time.monotonic())
            handle.write(line)
    if process.wait() != 0 or result is None:
        raise RuntimeError("%s gave no result (exit code %d); see %s.part" % (command[0], process.returncode, log))
    os.replace(log + ".part", log)
    return result


def measure(name, xmodel, folder, digest, rails, idle):
    """One model under power sampling: idle, run, idle. The window is the benchmark's own seconds up to its result."""
    sampler = power.Sampler(os.path.join(folder, "power.jsonl"), rails) if rails else None
    if sampler:
        sampler.start()
    try:
        time.sleep(idle)
        command = ["xdputil", "benchmark", xmodel, "1"]
        frames, seconds, end = benchmark(command, os.path.join(folder, "benchmark.log"))
        if sampler:
            sampler.mark("start", name, end - seconds)
            sampler.mark("stop", name, end, inferences=frames, md5=digest)
        time.sleep(idle)
    finally:
        if sampler:
            sampler.stop()
    return frames, seconds


def trace(xmodel, folder):
    """vaitrace's CSV family, written into the folder it is started in."""
    command = ["vaitrace", "-t", str(TRACE_SECONDS), "--va", "xdputil", "benchmark", xmodel, "1"]
    said = os.path.join(folder, "vaitrace.out")
    with open(said, "w") as out:
        done = subprocess.run(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode != 0 or not os.path.isfile(os.path.join(folder, "vart_trace.csv")):
        raise RuntimeError("vaitrace wrote no vart_trace.csv; see %s" % said)
    os.remove(said)


def run_model(bundle, name, entry, rails, idle):
    """Everything of one model; returns the line to print."""
    compiled = os.path.join(bundle, "xmodels", name)
    xmodel = os.path.join(compiled, name + ".xmodel")
    folder = os.path.join(bundle, "logs", name)
    if os.path.isfile(os.path.join(folder, "done.json")):
        return "ran before"
    if not os.path.isfile(xmodel):
        return "not compiled, left out"
    digest = md5(xmodel)
    if entry.get("md5") and entry["md5"] != digest:
        raise SystemExit("%s: MD5 %s, the manifest says %s; copy the bundle again" % (xmodel, digest, entry["md5"]))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    frames, seconds = measure(name, xmodel, folder, digest, rails, idle)
    if shutil.which("vaitrace"):
        trace(xmodel, folder)
        if os.path.isfile(os.path.join(compiled, "meta.json")):
            shutil.copy(os.path.join(compiled, "meta.json"), folder)
    write(os.path.join(folder, "md5sum.txt"), digest + "\n")
    write(os.path.join(folder, "done.json"), json.dumps({"frames": frames, "seconds": seconds}) + "\n")
    return "%d frames in %.2f s" % (frames, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--bundle", default=here)
    parser.add_argument("--only", nargs="*", help="run these models alone")
    parser.add_argument("--idle", type=float, default=1.0, help="seconds of rest before and after each run")
    parser.add_argument("--hwmon", default="/sys/class/hwmon")
    options = parser.parse_args()
    with open(os.path.join(options.bundle, "hwnas_bundle.json")) as handle:
        manifest = json.load(handle)
    names = options.only or sorted(manifest["models"])
    unknown = [name for name in names if name not in manifest["models"]]
    if unknown:
        raise SystemExit("not in the bundle: %s" % ", ".join(unknown))
    if not shutil.which("xdputil"):
        raise SystemExit("xdputil is not on the path; is this the board, with the Vitis AI runtime?")
    check_board(options.bundle, manifest)
    rails = power.find_rails(options.hwmon)
    print("rails: %s" % (", ".join(rails) or "none found, no power is sampled"))
    failed = []
    for position, name in enumerate(names, 1):
        try:
            said = run_model(options.bundle, name, manifest["models"][name], rails, options.idle)
        except RuntimeError as error:
            failed.append(name)
            said = "failed: %s" % error
        print("%d of %d, %s: %s" % (position, len(names), name, said), flush=True)
    if failed:
        raise SystemExit("%d of %d models failed; run again to retry them" % (len(failed), len(names)))


if __name__ == "__main__":
    main()
