#!/bin/sh
# The whole method on a world whose truth is known: preferences and images,
# noisy pairs, a latent reward model, LPO, and a comparison on prompts that
# nothing before has seen.
# usage: run.sh [--seed N] [--per-prompt N] [--prompts N] [--out DIR]
#               [--isa LEVEL] [--device cpu | cuda | cuda:N]
# DEVICE in the environment: as --device.
set -eu
# Without this, OpenMP threads that wait burn the core another program needs.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"

BIN=${BIN:-bin}
model=demo/model
seed=1 per_prompt=2 out=demo/out prompts=200 isa=
device=${DEVICE:-}
while [ $# -gt 0 ]; do
	case $1 in
	--seed) seed=$2 ;;
	--per-prompt) per_prompt=$2 ;;
	--prompts) prompts=$2 ;;
	--out) out=$2 ;;
	--isa) isa="--isa=$2" ;;
	--device) device=$2 ;;
	*) echo "usage: run.sh [--seed N] [--per-prompt N] [--prompts N]" \
	    "[--out DIR] [--isa LEVEL] [--device cpu | cuda | cuda:N]" >&2
	    exit 2 ;;
	esac
	shift 2
done
device=${device:+--device=$device}

# Settings, chosen on prompts and noise of the `tune` split only.  f32, so that
# machines with and without bf16 products give the same numbers to the eye.
# Above t = 751 the reward model is near chance on 8 x 8 latents, so neither
# stage looks there.
lrm_options="--steps 350 --batch 48 --lr 1e-3 --warmup 20 --schedule linear
	--weight-decay 0.01 --criterion both"
lpo_options="--iterations 16 --prompts-per-iteration 24 --batch 16
	--targets all --rank 8 --lr 1e-3 --threshold quantile:0.5
	--timesteps 0:701"

start=$(date +%s)
step() {
	printf '[%3d s] %s\n' $(($(date +%s) - start)) "$*"
}

# tool NAME ARGUMENTS: a quiet program with the demo's database.
tool() {
	name=$1
	shift
	"$BIN/$name" -q --db "$out/lpo.db" --seed "$seed" ${isa:+"$isa"} \
	    ${device:+"$device"} "$@"
}

# accuracy < lpo-lrm's words: a line of the noise levels.
accuracy() {
	awk '/accuracy/ {
		sub(/.*accuracy, /, "")
		sub(/ of .*/, "")
		sub(/: /, " ")
		if ($1 == "all") { $1 = ""; all = $0 }
		else list = list sprintf("  t=%-3s %.2f", $2, $3)
	}
	END { printf "        all%s %s\n", all, list }'
}

rm -rf "$out"
mkdir -p "$out"

step "a world of coloured shapes: 12000 pairs of pictures with a noisy" \
    "human's choices, 1500 more held out, and prompts (5 s)"
"$BIN/demo-world" prefs -n 12000 --seed "$seed" --split train -o "$out/train"
"$BIN/demo-world" prefs -n 1500 --seed "$seed" --split heldout -o "$out/held"
"$BIN/demo-world" prompts -n 600 --seed "$seed" --split train \
    -o "$out/prompts.csv"
"$BIN/demo-world" prompts -n "$prompts" --seed "$seed" --split heldout \
    -o "$out/heldout.csv"

step "lpo-encode: pictures that pass the MPCF filter to latents (10 s)"
tool lpo-encode --precision f32 -m $model --filter mpcf2 \
    "$out/train/prefs.csv" -o "$out/train.tar"
tool lpo-encode --precision f32 -m $model "$out/held/prefs.csv" \
    -o "$out/held.tar"

step "lpo-pairs | lpo-lrm: noisy pairs, and a reward model from them" \
    "(about 40 s)"
# LRM_OPTIONS and LPO_OPTIONS are lists of words.
# shellcheck disable=SC2086
tool lpo-pairs --epochs 4 --timesteps 1:751:50 "$out/train.tar" |
    tool lpo-lrm --precision f32 -m $model $lrm_options -o "$out/lrm/"

step "the reward model on held-out pairs (3 s)"
tool lpo-pairs --timesteps 1,201,401,601,751 --drop-ties "$out/held.tar" |
    "$BIN/lpo-lrm" --precision f32 --db none -m $model --score \
    ${isa:+"$isa"} ${device:+"$device"} -r "$out/lrm/" \
    2> "$out/accuracy.txt" > "$out/held-scores.tsv"

step "lpo-train: the model learns from the reward at every step (about 30 s)"
# shellcheck disable=SC2086
tool lpo-train --precision f32 -m $model -r "$out/lrm/" \
    -p "$out/prompts.csv" $lpo_options -o "$out/aligned.safetensors"

step "lpo-eval: base and aligned model on $prompts held-out prompts," \
    "$per_prompt pictures each, judged (about 20 s)"
tool lpo-eval --precision f32 -m $model --lora "$out/aligned.safetensors" \
    -p "$out/heldout.csv" --per-prompt "$per_prompt" \
    --scorer judge="$BIN/judge" --html "$out/report.html" \
    --title "The demo world: aligned against base" > "$out/result.tsv"

step "done; the judge's scores, with 95 % intervals over prompts:"
demo/table.sh "$out/result.tsv"
printf '\nthe reward model on held-out pairs (noisy labels), accuracy:\n'
accuracy < "$out/accuracy.txt"
printf '\nreport: %s\n' "$out/report.html"
