#!/bin/sh
# lpo-train --full: a model folder; and what holds for a LoRA too: the check,
# a LoRA to go on with, presets, options that contradict each other.
set -u
. tests/cli/lib.sh

small_lrm 20
ok $? "a small reward model"
"$bin/demo-world" prompts -n 6 --seed 3 --split train -o "$dir/prompts.csv"
"$bin/demo-world" prompts -n 2 --seed 4 --split heldout -o "$dir/held.csv"

set -- -m "$model" -r "$dir/lrm" -p "$dir/prompts.csv" --precision f32 \
    --iterations 2 --prompts-per-iteration 2 --batch 3 -s 16 --steps 5 \
    --threshold quantile:0.4 --checkpoint 0
common=$*
train() {
	# shellcheck disable=SC2086
	"$bin/lpo-train" $common "$@"
}
quiet() {
	train -q --db none "$@" 2>"$dir/err"
}
sql() {
	sqlite3 "$dir/lpo.db" "$1"
}
folder() {			# folder A B TEXT: the same model
	diff -r "$1" "$2" >"$dir/err"
	ok $? "$3"
}

# ---- a model folder
train -q --db "$dir/lpo.db" --full --lr 1e-4 --save-every 1 \
    --check-prompts "$dir/held.csv" -o "$dir/a/" 2>"$dir/err"
ok $? "--full"
test -s "$dir/a/unet/diffusion_pytorch_model.safetensors" &&
    test -s "$dir/a/unet/config.json" && test -s "$dir/a/lpo.json" &&
    test ! -e "$dir/a.state"
ok $? "writes a folder, and leaves no state"
odd=0
for part in vae text_encoder tokenizer scheduler model_index.json; do
	diff -r "$model/$part" "$dir/a/$part" >"$dir/err" || odd=1
done
ok $odd "with the base model's other parts"
is "$(sql "SELECT group_concat(step || ' ' || (check_score IS NOT NULL))
    FROM checkpoint")" "1 1,2 1" "both folders are listed with their scores"
is "$(sql "SELECT count(*) FROM metric m JOIN checkpoint c USING (run_id, step)
    WHERE name = 'check_score' AND value = check_score")" 2 \
    "which are the metric's of that step"
is "$(sql "SELECT count(DISTINCT value) FROM metric
    WHERE name = 'check_reference'")" 1 "the reference's score stays"
sql "SELECT step, name, value FROM metric WHERE name LIKE 'check%'
    ORDER BY 1, 2" >"$dir/checks"

quiet --full --lr 1e-4 -j 1 --micro-batch 1 -o "$dir/b"
folder "$dir/a" "$dir/b" "one thread, one pair at a time, no check: the same"
k=1
while [ $k -le 3 ]; do
	# shellcheck disable=SC2086
	"$bin/lpo-train" $common -q --db "$dir/k.db" --full --lr 1e-4 \
	    --check-every 1 --check-prompts "$dir/held.csv" -o "$dir/k" \
	    2>/dev/null &
	pid=$!
	sleep "0.$((k * 23 % 10))"
	kill -9 $pid 2>/dev/null
	wait $pid 2>/dev/null
	k=$((k + 1))
done
train -q --db "$dir/k.db" --full --lr 1e-4 --check-every 1 \
    --check-prompts "$dir/held.csv" -o "$dir/k" 2>"$dir/err"
folder "$dir/a" "$dir/k" "killed three times: the same folder"
sqlite3 "$dir/k.db" "SELECT step, name, value FROM metric WHERE name
    LIKE 'check%' ORDER BY 1, 2" | cmp -s - "$dir/checks"
ok $? "and the same checks"

# ---- as a model
"$bin/lpo-eval" -q --db none --precision f32 \
    --system base="$model" --system full="$dir/a" -p "$dir/held.csv" --steps 4 \
    --scorer judge="$bin/judge" >"$dir/out" 2>"$dir/err"
ok $? "lpo-eval compares it with the base model"
quiet --full --lr 0 -o "$dir/zero"
"$bin/lpo-sample" -q --db none --precision f32 -m "$dir/zero" --steps 3 \
    -p "$dir/held.csv" -o "$dir/zero.d/" 2>"$dir/err" &&
    "$bin/lpo-sample" -q --db none --precision f32 -m "$model" --steps 3 \
    -p "$dir/held.csv" -o "$dir/base.d/" 2>"$dir/err"
ok $? "lpo-sample draws with it"
"$bin/lpo-eval" -q --db none --system a="$dir/base.d" \
    --system b="$dir/zero.d" -p "$dir/held.csv" --scorer judge="$bin/judge" >"$dir/out" \
    2>"$dir/err"
awk -F '\t' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "difference")
    c = i } NR > 1 { n++; bad += $c != 0 } END { exit !(n > 0 && bad == 0) }' \
    "$dir/out"
ok $? "at learning rate 0 it draws as the base model does"
is "$(status train -q --db none --full --lr 2e-4 -o "$dir/a")" 1 \
    "another run's folder is not overwritten"
train --full --lr 1e-4 --dry-run -o "$dir/n" >"$dir/out" 2>"$dir/err"
grep -q "^reference UNet" "$dir/out" && grep -q "^time" "$dir/out" &&
    test ! -e "$dir/n"
ok $? "--dry-run knows its memory and time"

# ---- a LoRA: the check, and going on
quiet --lora-f32 --lr 1e-3 -o "$dir/l.safetensors"
train -q --db "$dir/c.db" --lora-f32 --lr 1e-3 --check-every 1 \
    --check-count 1 -o "$dir/m.safetensors" 2>"$dir/err"
same "$dir/l.safetensors" "$dir/m.safetensors" \
    "a check does not change the LoRA"
train --db none --lora-f32 --lr 1e-3 --iterations 1 --check-every 1 \
    -o "$dir/o.safetensors" 2>"$dir/err"
grep -q "check [-0-9.]* (reference [-0-9.]*, [-+0-9.]*; higher in" "$dir/err"
ok $? "the line of its iteration has it"
quiet --lora-f32 --lr 0 --init-lora "$dir/l.safetensors" -o "$dir/i.safetensors"
tail -c 60000 "$dir/l.safetensors" >"$dir/x"
is "$(wc -c <"$dir/x")" 60000 "a LoRA of some size"
tail -c 60000 "$dir/i.safetensors" | cmp -s - "$dir/x"
ok $? "--init-lora at learning rate 0 keeps the LoRA"
quiet --lora-f32 --lr 1e-3 --init-lora "$dir/l.safetensors" \
    -o "$dir/j.safetensors"
tail -c 60000 "$dir/j.safetensors" | cmp -s - "$dir/x"
is $? 1 "else it goes on from there"
run_of() {
	train --dry-run -o "$dir/n.safetensors" "$@" 2>"$dir/err" |
	    sed -n 's/^run	//p'
}
plain=$(run_of)
one=$(run_of --init-lora "$dir/l.safetensors")
other=$(run_of --init-lora "$dir/j.safetensors")
test ${#plain} -eq 16 -a ${#one} -eq 16 -a "$one" != "$other" \
    -a "$one" != "$plain"
ok $? "its hash is in the run id"
is "$(run_of --rank 4 --preset sd15)" "$plain" \
    "and so is what a preset came to, not its name"
test "$(run_of --preset sdxl)" != "$plain"
ok $? "but another preset is another run"
is "$(status train --init-lora "$dir/l.safetensors" --rank 8 \
    -o "$dir/n.safetensors")" 2 "--rank against the LoRA's"
grep -q -- "--rank 8, but --init-lora .* has rank 4" "$dir/err"
ok $? "names both"
is "$(status train --init-lora "$dir/l.safetensors" --targets all \
    -o "$dir/n.safetensors")" 2 "--targets against the LoRA's"
cp tests/golden/lpo_step_lora.safetensors "$dir/all.safetensors"
is "$(status train --init-lora "$dir/all.safetensors" --alpha 3 \
    -o "$dir/n.safetensors")" 2 "--alpha against the LoRA's"
is "$(status train --init-lora tests/golden/models/lora15.safetensors \
    -o "$dir/n.safetensors")" 1 "a LoRA for another model"
grep -q "lora15.safetensors: '" "$dir/err"
ok $? "by its key"

# ---- a reward model for other latents
cp -r "$dir/lrm" "$dir/other"
sed 's/"scaling_factor": [0-9.]*/"scaling_factor": 0.13025/' \
    "$dir/lrm/lrm.json" >"$dir/other/lrm.json"
is "$(status train -r "$dir/other" -o "$dir/n.safetensors")" 1 \
    "a reward model for another latent space"
grep -q "0.13025.*another latent space" "$dir/err"
ok $? "is refused by its scaling factor"
sed 's/"vae_sha256": "[0-9a-f]*"/"vae_sha256": "0123456789abcdef"/' \
    "$dir/lrm/lrm.json" >"$dir/other/lrm.json"
train --db none -r "$dir/other" --iterations 1 -o "$dir/v.safetensors" \
    2>"$dir/err"
grep -q "other VAE files" "$dir/err"
ok $? "other VAE files of the same scale are a word"
is "$(status train -r tests/golden/lrm/xl -o "$dir/n.safetensors")" 1 \
    "a reward model with two encoders, of another factor"
test ! -e "$dir/n.safetensors.state"
ok $? "what cannot start leaves no state"

# ---- the paper's settings (method.md 3.7), 4000 prompts
awk 'BEGIN { for (i = 0; i < 4000; i++) print "prompt " i }' >"$dir/p.txt"
preset() {			# preset NAME WANTED
	is "$("$bin/lpo-train" -m "$model" -r "$dir/lrm" -p "$dir/p.txt" \
	    --preset "$1" --dry-run -o "$dir/n.safetensors" 2>"$dir/err" |
	    sed -n -e 's/^iterations	//p' -e 's/^pairs per.*	/batch /p' \
	    -e 's/^learning rate	/lr /p' -e 's/^threshold	//p' \
	    -e 's/^LoRA	\(rank [0-9]*\).*/\1/p' | tr '\n' ' ')" \
	    "$2 " "preset $1"
}
preset sd15 "1000 of 20 prompts batch 40 lr 6e-05 sigma:0.35:0.5 rank 4"
preset sd21 "1000 of 20 prompts batch 40 lr 6e-05 sigma:0.35:0.5 rank 4"
preset sdxl "1250 of 16 prompts batch 16 lr 1e-05 sigma:0.45:0.6 rank 64"

# ---- what contradicts
both() {			# both ONE OTHER OPTIONS...
	one=$1
	other=$2
	shift 2
	is "$(status train "$@" -o "$dir/n.x")" 2 "--$one and --$other"
	grep -q -- "--$one" "$dir/err" && grep -q -- "--$other" "$dir/err"
	ok $? "are both named"
}
both epochs iterations --epochs 2
both full rank --full --rank 4
both full lora-format --full --lora-format both
both full init-lora --full --init-lora x
both dtype full --dtype f16
both check-prompts check-every --check-prompts "$dir/held.csv"
is "$(status train --full -o "$dir/n.safetensors")" 2 "--full into a file"
is "$(status train -o "$dir/")" 2 "a LoRA into a folder"
is "$(status train --full -m random:tiny -o "$dir/n")" 2 "--full of no files"

# ---- two at once
# shellcheck disable=SC2086
"$bin/lpo-train" $common -q --db none --iterations 500 \
    -o "$dir/t.safetensors" 2>/dev/null &
pid=$!
wait_for "$dir/t.safetensors.state/lock"
is "$(status train -q --db none --iterations 500 -o "$dir/t.safetensors")" 1 \
    "a second process on the same output"
grep -q "$pid" "$dir/err"
ok $? "is told of the first"
kill -9 $pid
wait $pid 2>/dev/null
done_testing
