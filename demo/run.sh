#!/bin/sh
# The whole method on a world whose truth is known: preferences and images,
# noisy pairs, a latent reward model, LPO, and a comparison on prompts that
# nothing before has seen.  usage: run.sh [--seed N] [--per-prompt N] [--out DIR]
set -eu

BIN=${BIN:-bin}
model=demo/model
seed=1 per_prompt=2 out=demo/out prompts=200
while [ $# -gt 0 ]; do
	case $1 in
	--seed) seed=$2 ;;
	--per-prompt) per_prompt=$2 ;;
	--prompts) prompts=$2 ;;
	--out) out=$2 ;;
	*) echo "usage: run.sh [--seed N] [--per-prompt N] [--prompts N]" \
	    "[--out DIR]" >&2; exit 2 ;;
	esac
	shift 2
done

# Settings, chosen on prompts and noise of the `tune` split only.
lrm_options="--steps 150 --batch 48 --lr 5e-4 --warmup 20 --schedule linear
	--weight-decay 0.01"
lpo_options="--iterations 14 --prompts-per-iteration 24 --batch 16
	--targets all --rank 8 --lr 1e-3 --threshold quantile:0.6"

start=$(date +%s)
step() {
	printf '\n[%3ds] %s\n' $(($(date +%s) - start)) "$*"
}

rm -rf "$out"
mkdir -p "$out"
db="--db $out/lpo.db"

step "A world of coloured shapes: 3500 pairs of pictures with a noisy human's" \
    "choices, 600 more held out, and prompts (2 s)"
"$BIN/demo-world" prefs -n 3500 --seed "$seed" --split train -o "$out/train"
"$BIN/demo-world" prefs -n 600 --seed "$seed" --split heldout -o "$out/held"
"$BIN/demo-world" prompts -n 600 --seed "$seed" --split train \
    -o "$out/prompts.csv"
"$BIN/demo-world" prompts -n "$prompts" --seed "$seed" --split heldout \
    -o "$out/heldout.csv"

step "Held-out pairs, encoded and noised once for the accuracy (about 3 s)"
"$BIN/lpo-encode" -q $db -m $model "$out/held/prefs.csv" |
    "$BIN/lpo-pairs" -q $db --seed 7 -o "$out/held.tar"

step "Pictures to latents, MPCF filter, noise, reward model:" \
    "lpo-encode | lpo-pairs | lpo-lrm (about 60 s)"
"$BIN/lpo-encode" -q $db -m $model --filter mpcf2 "$out/train/prefs.csv" |
    "$BIN/lpo-pairs" -q $db --epochs 4 --seed "$seed" |
    "$BIN/lpo-lrm" $db -m $model --seed "$seed" $lrm_options \
	-o "$out/lrm/"

step "Its accuracy on held-out pairs, by noise level"
"$BIN/lpo-lrm" -q --db none -m $model --score -r "$out/lrm/" \
    "$out/held.tar" > "$out/held-scores.tsv"

step "LPO: the diffusion model learns from the reward model at every step" \
    "(about 60 s)"
"$BIN/lpo-train" $db -m $model -r "$out/lrm/" -p "$out/prompts.csv" \
    --seed "$seed" $lpo_options -o "$out/aligned.safetensors"

step "Base and aligned model on $prompts held-out prompts, $per_prompt" \
    "pictures each, judged (about 40 s)"
"$BIN/lpo-eval" $db -m $model --lora "$out/aligned.safetensors" \
    -p "$out/heldout.csv" --per-prompt "$per_prompt" --seed "$seed" \
    --scorer judge="$BIN/judge" --html "$out/report.html" \
    --title "The demo world: aligned against base" > "$out/result.tsv"

step "Done.  Scores of the judge; intervals are 95 %, over prompts:"
awk -F '\t' 'NR > 1 {
	if (!head++) printf "\n%-18s %7s %8s %26s %30s\n", "", "base",
	    "aligned", "difference", "win rate"
	printf "%-18s %7.3f %8.3f %+9.3f [%+.3f, %+.3f] %8.1f %% [%.1f, %.1f]\n",
	    $1, $6, $7, $8, $9, $10, 100 * $11, 100 * $12, 100 * $13
}' "$out/result.tsv"
printf '\nreport: %s\n' "$out/report.html"
