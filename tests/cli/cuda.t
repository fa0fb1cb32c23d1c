#!/bin/sh
# The whole method with -d cuda, in small: near the CPU's results in f32, the
# same bytes twice and after a kill, and finite in bf16.
set -u
. tests/cli/lib.sh

if ! "$bin/lpo-probe" --devices 2>"$dir/err" | grep -q '^cuda'; then
	[ -z "${LPO_LEVEL-}" ] || ok 1 "a CUDA device"
	skip "no CUDA device: $(sed 's/.*no device .cuda.: //' "$dir/err" |
	    head -n 1)"
	done_testing
fi
tool() {	# tool NAME ARGUMENTS: on the device, in f32
	name=$1
	shift
	"$bin/$name" -q --db none -d cuda --precision f32 -m "$model" "$@" \
	    2>"$dir/err"
}

# near FILE FILE LIMIT: tab-separated numbers differ by LIMIT at most.
near() {
	paste "$1" "$2" | awk -F '\t' -v limit="$3" '
	NR > 1 {
		for (i = 2; i <= 3; i++) {
			off = $i - $(i + NF / 2)
			off = off < 0 ? -off : off
			if (!(off <= limit * (1 + ($i < 0 ? -$i : $i))))
				bad++
			if (off > worst)
				worst = off
		}
		n++
	}
	END { print worst + 0; exit !(n > 0 && bad == 0) }'
}

world 240
tool lpo-encode -o "$dir/moments.tar" "$dir/world/prefs.csv"
ok $? "lpo-encode"
"$bin/lpo-encode" -q --db none --precision f32 -m "$model" \
    -o "$dir/cpu.tar" "$dir/world/prefs.csv" 2>"$dir/err"
ok $? "and on the CPU"
pairs() {
	"$bin/lpo-pairs" -q --db none "$@" "$dir/$in" 2>"$dir/err"
}
in=moments.tar
pairs --epochs 4 --timesteps 1:751:50 |
    tool lpo-lrm --steps 30 --batch 24 --lr 1e-3 --criterion both \
    -o "$dir/lrm"
ok $? "lpo-pairs | lpo-lrm"
pairs --timesteps 1,401 | tool lpo-lrm --score -r "$dir/lrm" > "$dir/gpu.tsv"
ok $? "lpo-lrm --score"
in=cpu.tar
pairs --timesteps 1,401 | "$bin/lpo-lrm" -q --score --db none -m "$model" \
    --precision f32 -r "$dir/lrm" > "$dir/cpu.tsv" 2>"$dir/err"
ok $? "and on the CPU"
off=$(near "$dir/gpu.tsv" "$dir/cpu.tsv" 0.01)
ok $? "moments and scores are the CPU's: off by $off"

"$bin/demo-world" prompts -n 12 --seed 3 --split train -o "$dir/p.csv"
set -- -r "$dir/lrm" -p "$dir/p.csv" --prompts-per-iteration 4 --batch 6 \
    --targets all --rank 4 --lr 1e-3 --steps 6 --threshold quantile:0.5 \
    --iterations 2 --checkpoint 0
tool lpo-train "$@" -o "$dir/a.safetensors"
ok $? "lpo-train"
tool lpo-train "$@" -o "$dir/b.safetensors"
same "$dir/a.safetensors" "$dir/b.safetensors" "again: the same bytes"
"$bin/lpo-train" -q --db none -d cuda --precision f32 -m "$model" "$@" \
    -o "$dir/k.safetensors" 2>/dev/null &
pid=$!
i=0
while [ $i -lt 400 ] && ! ls "$dir"/k.safetensors.state/snap-* \
    >/dev/null 2>&1; do
	sleep 0.05
	i=$((i + 1))
done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
tool lpo-train "$@" -o "$dir/k.safetensors"
same "$dir/a.safetensors" "$dir/k.safetensors" \
    "killed and run again: the same bytes"
tool lpo-train "$@" --precision bf16 -o "$dir/h.safetensors"
ok $? "lpo-train in bf16"
tool lpo-train -r "$dir/lrm" -p "$dir/p.csv" --prompts-per-iteration 2 \
    --batch 4 --steps 4 --threshold quantile:0.5 --iterations 1 --full \
    -o "$dir/full"
ok $? "lpo-train --full"

"$bin/demo-world" prompts -n 6 --seed 3 --split heldout -o "$dir/q.csv"
tool lpo-sample --steps 5 -p "$dir/q.csv" -n 2 -o "$dir/s.tar" \
    --lora "$dir/a.safetensors"
ok $? "lpo-sample"
tool lpo-sample --steps 5 -p "$dir/q.csv" -n 2 --lora "$dir/a.safetensors" \
    > "$dir/t.tar"
same "$dir/s.tar" "$dir/t.tar" "again: the same pictures"
tool lpo-sample --precision bf16 --steps 5 -p "$dir/q.csv" -o "$dir/h.tar"
ok $? "lpo-sample in bf16"
tool lpo-eval --lora "$dir/a.safetensors" -p "$dir/q.csv" --per-prompt 1 \
    --scorer judge="$bin/judge" > "$dir/result.tsv"
ok $? "lpo-eval"
test "$(wc -l < "$dir/result.tsv")" -gt 1
ok $? "with a result"
done_testing
