#!/bin/sh
# The demo for five seeds, four pictures a prompt, and all of them pooled,
# picture by picture; intervals are over prompts.
# usage: seeds.sh [SEED...]
set -eu

BIN=${BIN:-bin}
[ $# -gt 0 ] || set -- 1 2 3 4 5
databases=
for seed in "$@"; do
	echo "== seed $seed"
	demo/run.sh --seed "$seed" --per-prompt 4 --prompts 200 \
	    --out "demo/out-seed$seed"
	databases="$databases demo/out-seed$seed/lpo.db"
done
echo
echo "== pooled over $# seeds"
# shellcheck disable=SC2086
"$BIN/lpo-eval" --pool --db none $databases > demo/out-pooled.tsv
demo/table.sh demo/out-pooled.tsv
