#!/usr/bin/env bash
# Every figure of benches/README.md but the log's, one file each under target/figures/, as the rows
# stand there: `bash benches/all.sh`, or some of the names below. 25 minutes and 10 GB of disk. Go
# isn't needed; with it there are rows of the Go program. Java 17 and Maven are, for the real Kafka.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
figures=target/figures
mkdir -p "$figures"
wanted=("$@")

if [ -z "${FOREBAY_BENCH_GO:-}" ] && command -v go >/dev/null; then
    (cd benches/peers && go build -o peers .)
    export FOREBAY_BENCH_GO=benches/peers/peers
fi

# figure NAME COMMAND...: runs it if it is wanted, and says how long it took.
figure() {
    local name=$1 start=$SECONDS
    shift
    if ((${#wanted[@]})) && [[ " ${wanted[*]} " != *" $name "* ]]; then return 0; fi
    echo "==> $name: $*"
    "$@" | tee "$figures/$name.md"
    echo "==> $name: $((SECONDS - start)) s"
}

# One set of features, so that all are built once.
bench() { cargo bench -q -p forebay --features embedded,internals --bench "$@"; }
real() { FOREBAY_BENCH_MOCK=0 FOREBAY_BENCH_KAFKA=1 bench end_to_end -- "$@"; }
plots() {
    cargo build -q --release -p forebay-cli
    target/release/forebay bench send --svg-dir target/figures
    target/release/forebay bench outage --outage-s 10 --svg-dir target/figures
}

figure means bench send -- means
figure tails bench send -- tails
figure peak bench send -- peak
figure forms bench send -- forms
figure shared bench send -- shared
figure sizes bench send -- sizes
figure peers bench send -- peers
figure scale bench send -- scale
figure mock-flat bench end_to_end -- flat
figure mock-paced bench end_to_end -- paced
figure kafka-flat real flat
figure kafka-paced real paced
figure million bench outage -- million
figure blackout bench outage -- blackout
figure kill bench outage -- kill
figure plots plots
