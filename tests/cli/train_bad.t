#!/bin/sh
# lpo-train with weights that are not finite, or not for long: refused by key,
# or counted and said; what is written is finite.
set -u
. tests/cli/lib.sh

small_lrm 20
ok $? "a small reward model"
printf 'a red circle\ntwo blue squares\n' >"$dir/p.txt"
set -- -r "$dir/lrm" -p "$dir/p.txt" --precision f32 --iterations 1 \
    --prompts-per-iteration 2 --batch 3 -s 16 --steps 4 \
    --threshold static:0 --lora-f32
common=$*
train() {
	# shellcheck disable=SC2086
	"$bin/lpo-train" -m "$model" $common --db none "$@"
}
poison() {			# poison FILE BYTES: its last 4000 bytes
	size=$(wc -c <"$1")
	i=0
	while [ $i -lt 1000 ]; do
		# shellcheck disable=SC2059
		printf "$2"
		i=$((i + 1))
	done | dd of="$1" bs=4000 seek="$((size - 4000))" oflag=seek_bytes \
	    conv=notrunc 2>/dev/null
}
nan='\000\000\300\177'
huge='\346\261\141\177'		# 3e38

train -q -o "$dir/a.safetensors" 2>"$dir/err"
ok $? "a LoRA"
cp "$dir/a.safetensors" "$dir/nan.safetensors"
poison "$dir/nan.safetensors" "$nan"
is "$(status train --init-lora "$dir/nan.safetensors" \
    -o "$dir/n.safetensors")" 1 "a LoRA with NaN"
grep -q "nan.safetensors: .* of '[a-z_0-9.]*' is not finite" "$dir/err"
ok $? "is refused by its key"

cp -r "$model" "$dir/model"
chmod -R u+w "$dir/model"
poison "$dir/model/unet/diffusion_pytorch_model.safetensors" "$nan"
is "$(status train -m "$dir/model" -o "$dir/n.safetensors")" 1 \
    "a model with NaN"
grep -q "unet/.*: .* '[a-z_0-9.]*' is not finite" "$dir/err"
ok $? "likewise"
cp -r "$dir/lrm" "$dir/lrm2"
poison "$dir/lrm2/text_encoder/model.safetensors" "$nan"
is "$(status train -r "$dir/lrm2" -o "$dir/n.safetensors")" 1 \
    "a reward model with NaN"
grep -q "lrm2/text_encoder/.* '[a-z_0-9.]*' is not finite" "$dir/err"
ok $? "likewise"
test ! -e "$dir/n.safetensors" -a ! -e "$dir/n.safetensors.state"
ok $? "and nothing is left"

# ---- finite weights whose products are not
cp "$dir/a.safetensors" "$dir/huge.safetensors"
poison "$dir/huge.safetensors" "$huge"
"$bin/lpo-train" -q --db "$dir/lpo.db" -m "$model" -r "$dir/lrm" \
    -p "$dir/p.txt" --precision f32 --iterations 2 -s 16 --steps 4 \
    --prompts-per-iteration 2 --batch 3 --threshold static:0 --lora-f32 \
    --check-every 1 --init-lora "$dir/huge.safetensors" \
    -o "$dir/h.safetensors" 2>"$dir/err"
ok $? "a LoRA of 3e38: no pair, no step"
is "$(sqlite3 "$dir/lpo.db" "SELECT group_concat(name || ' ' ||
    CAST(value AS INTEGER)) FROM metric WHERE step = 2 AND name IN
    ('bad_scores', 'transitions', 'valid', 'optimiser_steps')
    ORDER BY name")" \
    "bad_scores 8,optimiser_steps 0,transitions 8,valid 0" \
    "all transitions are counted as bad"
is "$(sqlite3 "$dir/lpo.db" "SELECT count(*) FROM metric
    WHERE name = 'check_score' AND value IS NULL")" 2 \
    "a check that is not finite is NULL"
tail -c 4000 "$dir/h.safetensors" >"$dir/x"
tail -c 4000 "$dir/huge.safetensors" | cmp -s - "$dir/x"
ok $? "the weights stay as they are"
train --init-lora "$dir/huge.safetensors" -o "$dir/i.safetensors" \
    2>"$dir/err"
grep -q "8 of 8 transitions had scores that are not finite" "$dir/err"
ok $? "which is said"

status "$bin/lpo-sample" -q --db none -m "$model" --precision f32 \
    -p "$dir/p.txt" --steps 1 --lora "$dir/huge.safetensors" -o "$dir/p.tar" >"$dir/st"
is "$(cat "$dir/st")" 1 "its pictures are not drawn"
grep -q "picture '000000000-0' is not finite: .* too large for F32" "$dir/err"
ok $? "which is said too"
test ! -e "$dir/p.tar"
ok $? "and no black ones are left"

# ---- a rate that tears the policy away from the reference
train --lr 10 --batch 1 --iterations 2 -o "$dir/c.safetensors" 2>"$dir/err"
grep -q "ratios are clipped.*--lr" "$dir/err"
ok $? "clipped ratios are explained"
done_testing
