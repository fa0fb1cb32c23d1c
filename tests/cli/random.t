#!/bin/sh
# random:KIND through the whole pipeline, SDXL's kind too, and what a run
# takes such a model for.
set -u
. tests/cli/lib.sh

world 6
cd "$dir" || exit 1
printf 'a red circle\na blue square\n' > p.txt

# all KIND REWARD: preferences to pictures with a LoRA
all() {
	"$bin/lpo-encode" -q -m "random:$1" -o "$1.tar" world/prefs.csv \
	    2>"$dir/err"
	ok $? "$1: encode"
	"$bin/lpo-pairs" -q --epochs 2 --drop-ties -o "$1-pairs.tar" \
	    "$1.tar" 2>"$dir/err"
	ok $? "$1: pairs"
	"$bin/lpo-lrm" -q -m "random:$1" --steps 1 --batch 2 -o "$1-lrm/" \
	    "$1-pairs.tar" 2>"$dir/err"
	ok $? "$1: a reward model"
	"$bin/lpo-train" -q -m "random:$1" -r "$2" -p p.txt --iterations 1 \
	    --prompts-per-iteration 2 --batch 2 --steps 3 \
	    --threshold quantile:0.3 -o "$1.safetensors" 2>"$dir/err"
	ok $? "$1: train with $2"
	"$bin/lpo-sample" -q -m "random:$1" --lora "$1.safetensors" \
	    -p p.txt --steps 2 -o "$1-pictures/" 2>"$dir/err"
	ok $? "$1: sample"
	is "$(find "$1-pictures" -name '*.png' | wc -l | tr -d ' ')" 2 \
	    "$1: two pictures"
}
all tiny random:tiny
all tinyxl tinyxl-lrm

is "$(status "$bin/lpo-lrm" --score -r random:tiny tiny-pairs.tar)" 0 \
    "a random reward model scores"

# ---- identity
"$bin/lpo-encode" -m random:tiny:0 -o tiny.tar world/prefs.csv 2>"$dir/err"
is "$? $(grep -c 'already done' "$dir/err")" "0 1" "random:tiny is seed 0"
is "$(status "$bin/lpo-encode" -m random:tiny:1 -o tiny.tar \
    world/prefs.csv)" 1 "another seed is another model"
"$bin/lpo-probe" -q -m random:tiny --save folder
"$bin/lpo-encode" -q -m folder --force -o again.tar world/prefs.csv
"$bin/lpo-pairs" -q --epochs 2 --drop-ties -o again-pairs.tar again.tar
tar -xOf tiny-pairs.tar --wildcards '*.npy' > a
tar -xOf again-pairs.tar --wildcards '*.npy' > b
same a b "the folder that was saved gives the same latents"
is "$(status "$bin/lpo-sample" -m random:nothing -p p.txt -o x.tar)" 2 \
    "no such kind"
done_testing
