#!/bin/sh
# lpo-lrm: values that are not finite, streams of unknown length, checks that
# end a run, batch criteria in micro-batches, options that contradict.
# shellcheck disable=SC2046  # names are ours
set -u
. tests/cli/lib.sh

golden=$PWD/tests/golden/lrm
model=$golden/sd
lrm() {
	"$bin/lpo-lrm" --no-progress --precision f32 -m "$model" --batch 4 \
	    --lr 1e-2 --schedule constant --warmup 0 --db none "$@" 2>"$dir/err"
}
weights() {			# weights A B TEXT: the same, of two runs
	same "$1/unet/diffusion_pytorch_model.safetensors" \
	    "$2/unet/diffusion_pytorch_model.safetensors" "$3"
}

pairs=$dir/pairs.tar
"$bin/lpo-pairs" -q -m "$model" --epochs 5 --dtype f4 --db none \
    -o "$pairs" "$golden/moments.tar" 2>"$dir/err" &&
    "$bin/lpo-pairs" -q -m "$model" --epochs 2 --seed 9 --db none \
    -o "$dir/held.tar" "$golden/moments.tar" 2>"$dir/err"
ok $? "pairs"

# ---- the same pairs as a foreign tar, whose latents can be changed
mkdir "$dir/x"
tar -xf "$pairs" -C "$dir/x"
tar -tf "$pairs" | grep -v __ >"$dir/list"
for j in "$dir"/x/*.json; do
	sed 's/"crc32c":{[^}]*},//' "$j" >"$dir/json" && cp "$dir/json" "$j"
done
key() {				# key N: the N-th pair's, from 1
	sed -n 's/\.json$//p' "$dir/list" | sed -n "$1p"
}
poison() {			# poison N BYTES: each float of its latent
	f=$dir/x/$(key "$1").latent_0.npy
	head -c 128 "$f" >"$dir/npy"
	i=0
	while [ $i -lt 96 ]; do
		# shellcheck disable=SC2059
		printf "$2" >>"$dir/npy"
		i=$((i + 1))
	done
	cp "$dir/npy" "$f"
}
nan='\000\000\300\177'
huge='\346\261\141\177'		# 3e38
tar -cf "$dir/plain.tar" -C "$dir/x" -T "$dir/list"
lrm --steps 6 -o "$dir/a" "$dir/plain.tar"
ok $? "a foreign tar trains, given --steps"

poison 6 "$huge"
tar -cf "$dir/huge.tar" -C "$dir/x" -T "$dir/list"
lrm --steps 6 --db "$dir/h.db" -o "$dir/h" "$dir/huge.tar"
ok $? "a latent of 3e38"
is "$(grep -c 'is not finite' "$dir/err")" 1 "one step is left out"
grep -q "step 2: a score.*first at pair '$(key 6)', timestep $(sed -n \
    's/.*"timestep_0":\([0-9]*\).*/\1/p' "$dir/x/$(key 6).json"))" "$dir/err"
ok $? "pair and timestep are named"
is "$(sqlite3 "$dir/h.db" "SELECT group_concat(step) FROM metric WHERE
    name = 'skipped' AND value = 1")" 2 "the database has it"
lrm --steps 6 -j 1 --micro-batch 1 -o "$dir/h1" "$dir/huge.tar"
weights "$dir/h" "$dir/h1" "the same, pair by pair"
"$bin/lpo-lrm" -q --score --precision f32 -r "$dir/h" --db none \
    "$dir/held.tar" 2>"$dir/err" | awk 'NR > 1 && ($2 != $2 + 0 || $2 > 99 ||
    $2 < -99) { bad++ } END { exit !(NR == 25 && bad == 0) }'
ok $? "the weights are finite"
head -c 9000 "$dir/huge.tar" | lrm --steps 6 -o "$dir/h2" --checkpoint 0
is $? 1 "cut behind that step"
lrm --steps 6 -o "$dir/h2" <"$dir/huge.tar"
weights "$dir/h" "$dir/h2" "and gone on: the same weights"

k=5
while [ $k -le 24 ]; do
	poison $k "$huge"
	k=$((k + 1))
done
tar -cf "$dir/bad.tar" -C "$dir/x" -T "$dir/list"
lrm --steps 15 -o "$dir/f" "$dir/bad.tar"
is $? 1 "five steps in a row that are not finite"
grep -q "5 steps in a row (step 6)" "$dir/err"
ok $? "end the run"
test ! -e "$dir/f" && ls -d "$dir"/f.state/snap-* >/dev/null 2>&1
ok $? "nothing published, the state saved"
lrm --steps 15 -o "$dir/f" "$dir/bad.tar"
ok $? "behind them it goes on"
grep -q "goes on after step 6" "$dir/err"
ok $? "with the next pairs"

poison 2 "$nan"
tar -cf "$dir/nan.tar" -C "$dir/x" -T "$dir/list"
lrm --steps 3 -o "$dir/n" "$dir/nan.tar"
is $? 1 "a latent of NaN is refused"
grep -q "'$(key 2)' has a latent that is not finite" "$dir/err"
ok $? "by its sample"
test ! -e "$dir/n"
ok $? "and nothing is published"

# ---- streams that do not know their length
stream() {
	"$bin/lpo-pairs" -q -m "$model" --epochs 1 --shuffle 4 --db none \
	    "$golden/moments.tar" 2>/dev/null
}
stream | lrm -o "$dir/s"
is $? 2 "pairs of unknown number need --steps"
grep -q -- "--steps is needed" "$dir/err"
ok $? "which is said"
stream | lrm -o "$dir/s" --steps 3
ok $? "with it they train"
stream | lrm -o "$dir/t" --steps 4
is $? 1 "a stream that ends before the last step"
grep -q "end after 12" "$dir/err" && test ! -e "$dir/t" -a -d "$dir/t.state"
ok $? "says after how many; the state stays, nothing is published"

# ---- checks that end a run
lrm --lr 0 --eval "$dir/held.tar" --eval-every 2 --patience 2 \
    -o "$dir/p" "$pairs"
ok $? "--patience"
grep -q "ends at step 6 of 15: no check since step 2" "$dir/err"
ok $? "two checks no better than the first"
lrm --eval "$dir/held.tar" --eval-every 1 --patience 3 --keep best \
    -o "$dir/q" "$pairs"
ok $? "with --keep best"
grep "^lpo-lrm: \(ends\|kept\)" "$dir/err" >"$dir/words"
k=1
while [ $k -le 3 ]; do
	"$bin/lpo-lrm" --no-progress --precision f32 -m "$model" --batch 4 \
	    --lr 1e-2 --schedule constant --warmup 0 --db none --checkpoint 0 \
	    --eval "$dir/held.tar" --eval-every 1 --patience 3 --keep best \
	    -o "$dir/r" "$pairs" 2>/dev/null &
	pid=$!
	sleep "0.$((k * 7 % 10))"
	kill -9 $pid 2>/dev/null
	wait $pid 2>/dev/null
	k=$((k + 1))
done
lrm --eval "$dir/held.tar" --eval-every 1 --patience 3 --keep best \
    -o "$dir/r" "$pairs"
diff -r "$dir/q" "$dir/r" >>"$dir/err"
ok $? "killed three times: the same end"
step=$(sed -n 's/.*kept: step \([0-9]*\),.*/\1/p' "$dir/words")
# a step is saved though the check that follows it fails
best() {
	lrm --eval "$dir/held.tar" --eval-every 1 --patience 3 --keep best \
	    -o "$dir/late" "$pairs"
}
if ${CC:-cc} -O2 -fPIC -D_GNU_SOURCE -shared -o "$dir/shim.so" \
    tests/faults/shim.c -ldl 2>"$dir/err" &&
    LD_PRELOAD="$dir/shim.so" "$bin/lpo-lrm" --version >"$dir/out" 2>&1; then
	(
		export LD_PRELOAD="$dir/shim.so" FAULT_CALL=write FAULT_AT=1 \
		    FAULT_UNDER="$dir/late.state/best-00000000$step"
		best
	)
	is $? 1 "a best that cannot be kept"
	best
	grep -q "goes on after step $step " "$dir/err"
	ok $? "goes on after that step"
	diff -r "$dir/q" "$dir/late" >>"$dir/err"
	ok $? "its check is made again: the same end"
else
	skip "nothing can be loaded before the program's libraries"
fi
lrm --steps "${step:-0}" -o "$dir/u" "$pairs"
weights "$dir/q" "$dir/u" "what is kept is the step it says (${step:-?})"
"$bin/lpo-pairs" -q -m "$model" --where 'label_0 = 0.5' --db none \
    -o "$dir/ties.tar" "$golden/moments.tar" 2>"$dir/err"
lrm --eval "$dir/ties.tar" --eval-every 1 --patience 1 -o "$dir/w" "$pairs"
is $? 1 "ties only choose nothing"

# ---- criteria over the whole batch
for c in batch both; do
	lrm --steps 2 --criterion $c -o "$dir/$c.1" "$pairs"
	lrm --steps 2 --criterion $c --micro-batch 1 -o "$dir/$c.2" "$pairs"
	weights "$dir/$c.1" "$dir/$c.2" "--criterion $c, pair by pair"
	lrm --steps 2 --criterion $c --micro-batch 3 -o "$dir/$c.3" "$pairs"
	weights "$dir/$c.1" "$dir/$c.3" "--criterion $c, three at a time"
done
cmp -s "$dir/batch.1/unet/diffusion_pytorch_model.safetensors" \
    "$dir/both.1/unet/diffusion_pytorch_model.safetensors"
is $? 1 "they are two criteria"

# ---- what contradicts
both() {			# both ONE OTHER OPTIONS...
	one=$1
	other=$2
	shift 2
	lrm "$@" "$pairs"
	is $? 2 "--$one and --$other"
	grep -q -- "--$one" "$dir/err" && grep -q -- "--$other" "$dir/err"
	ok $? "are both named"
}
both patience eval -o "$dir/z" --patience 2
both eval-every eval -o "$dir/z" --eval-every 2
both batch-coeff criterion -o "$dir/z" --batch-coeff 2
both multi-scale-cfg multi-scale -o "$dir/z" --multi-scale off \
    --multi-scale-cfg on
both multi-scale-cfg guidance -o "$dir/z" --guidance 1 --multi-scale-cfg on
both reward score -o "$dir/z" -r "$dir/a"
"$bin/lpo-lrm" --score -r "$dir/a" --steps 3 "$pairs" 2>"$dir/err"
is $? 2 "--score and --steps"

# ---- two at once: one that waits for pairs has the lock
mkfifo "$dir/fifo"
{ head -c 20000 "$pairs"; exec sleep 30; } >"$dir/fifo" &
feeder=$!
"$bin/lpo-lrm" -q -m "$model" --batch 4 --db none -o "$dir/z" \
    <"$dir/fifo" 2>/dev/null &
pid=$!
wait_for "$dir/z.state/lock"
"$bin/lpo-lrm" -q -m "$model" --batch 4 --db none -o "$dir/z" <"$pairs" \
    2>"$dir/err"
is $? 1 "a second process on the same output"
grep -q "$pid" "$dir/err"
ok $? "is told of the first"
kill -9 $pid $feeder
wait $pid $feeder 2>/dev/null
done_testing
