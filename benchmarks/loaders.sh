#!/usr/bin/env bash
# Our loader beside FFCV, DALI, MXNet's iterators, torch's DataLoader and thirty plain lines, in one command: makes each
# peer's environment, then prints a table for 256 px and for originals. It installs nothing in the system: it names what
# a peer lacks and goes on without it.
#   bash benchmarks/loaders.sh [--rounds 8] [--threads 1 2] [--peers ours ffcv ...]     (benchmarks/loader.py has all options)
. "$(dirname "$0")/../scripts/environment.sh"
python benchmarks/environments.py >&2
exec python benchmarks/loader.py "$@"
