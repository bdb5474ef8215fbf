"""Measure what keeping freed memory saves in training on a CPU.

python bench/training_allocator.py --data kuairand:PATH [--steps 60] [--turns 4] [--record FILE]

Every turn trains ``aif`` in two new processes, one of which calls `aif_jax.training.keep_freed_memory` first.
Compile once before (``JAX_COMPILATION_CACHE_DIR``), or turns are long.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

from aif_jax.data import load
from aif_jax.training import keep_freed_memory, preset, train
from stage.environment import environment

WAYS = ("given back", "kept")


def trained(spec: str, steps: int, way: str) -> dict[str, float]:
    """Train in this process; return examples, page faults and seconds."""
    if way == "kept" and not keep_freed_memory():
        raise SystemExit("this C library cannot be told to keep freed memory")
    dataset = load(spec)
    model, training = preset(dataset.name)
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = train(model, dataset, training.replace(epochs=1, max_steps=steps, patience=0))
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "examples_per_s": result.examples_per_s,
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
        "system_s": after.ru_stime - before.ru_stime,
        "user_s": after.ru_utime - before.ru_utime,
    }


def page(spec: str, steps: int, turns: int) -> str:
    """Train in turns; return the record."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(turns):
        for way in WAYS if turn % 2 else reversed(WAYS):
            command = [sys.executable, __file__, "--data", spec, "--steps", str(steps), "--way", way]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[way].append(json.loads(said.splitlines()[-1]))
    machine = environment()
    lines = [
        "# What keeping freed memory saves in training",
        "",
        f"By `python bench/training_allocator.py --data {spec.split(':')[0]}:PATH` on {machine['cpu']}, "
        f"cores: {machine['cores']}, jax {machine['jax']}, commit {machine['commit']}, "
        f"{machine['date'][:10]}. `aif`, {steps} steps a process; medians of {turns} turns, and "
        "the ratio of examples a second in each.",
        "",
        "| freed memory is | examples a second | page faults a step | system time | user time | ratios |",
        "|---" * 6 + "|",
    ]
    for way in WAYS:
        values = {name: [each[name] for each in found[way]] for name in found[way][0]}
        ratios = [
            kept["examples_per_s"] / given["examples_per_s"]
            for kept, given in zip(found["kept"], found["given back"], strict=True)
        ]
        cells = [
            f"{np.median(values['examples_per_s']):,.0f}", f"{np.median(values['faults']):,.0f}",
            f"{np.median(values['system_s']):.1f} s", f"{np.median(values['user_s']):.1f} s",
            ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios)) if way == "kept" else "",
        ]  # fmt: skip
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the record, and write it if a file is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--way", choices=WAYS, help="train once in this process and print what it took")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(trained(options.data, options.steps, options.way)))
        return
    text = page(options.data, options.steps, options.turns)
    print(text)
    if options.record:
        options.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
