#!/usr/bin/env bash
# How a send's cost grows: 1 to 16 threads on 1 to 16 lanes, and sizes by threads. For a machine with
# more cores than two; its rows are those of the tables in benches/README.md. Run it from anywhere:
#
#   bash benches/scale.sh [MOST_THREADS]
#
# Without a number: as many threads as there are cores. Leave one core to the flusher: with 16 threads
# on 16 cores the tails are the scheduler's. About 8 minutes with 16 threads, 2 with 2. Nothing is
# pinned; on a machine with several sockets run it under `numactl --cpunodebind=0 --membind=0` first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lscpu | grep -E '^(Model name|CPU\(s\)|Thread\(s\) per core|NUMA node\(s\)|L[123])' || true
uname -sr
rustc --version
[ $# -eq 0 ] || export FOREBAY_BENCH_THREADS=$1
cargo bench -p forebay --no-default-features --features internals --bench send -- scale
