#!/bin/sh
# lpo-train: the same LoRA for any micro-batch and thread count and after being
# killed or stopped at any moment; health in words; refusals.
set -u
. tests/cli/lib.sh

small_lrm 60
ok $? "a small reward model"
"$bin/demo-world" prompts -n 12 --seed 3 --split train -o "$dir/prompts.csv"

# A LoRA in 12 small pieces of work, each followed by a snapshot.
set -- -m "$model" -r "$dir/lrm" -p "$dir/prompts.csv" --precision f32 \
    --iterations 2 --prompts-per-iteration 4 --batch 6 --targets all \
    --rank 4 --lr 1e-3 --steps 6 --threshold quantile:0.5 --checkpoint 0
common=$*
train() {
	# shellcheck disable=SC2086
	"$bin/lpo-train" $common "$@"
}
quiet() {
	train -q --db none "$@" 2>"$dir/err"
}

quiet -o "$dir/a.safetensors"
ok $? "train"
test ! -e "$dir/a.state" && test ! -e "$dir/a.safetensors.state"
ok $? "the state is gone after success"
quiet -j 1 --micro-batch 1 -o "$dir/b.safetensors"
same "$dir/a.safetensors" "$dir/b.safetensors" \
    "one thread and one pair at a time: the same bytes"
quiet -j 3 --micro-batch 4 -o "$dir/c.safetensors"
same "$dir/a.safetensors" "$dir/c.safetensors" \
    "three threads and four pairs at a time: the same bytes"
quiet --segments on --micro-batch 3 -o "$dir/seg.safetensors"
same "$dir/a.safetensors" "$dir/seg.safetensors" \
    "checkpointed segments: the same bytes"
quiet --seed 7 -o "$dir/d.safetensors"
test -s "$dir/d.safetensors" &&
    ! cmp -s "$dir/a.safetensors" "$dir/d.safetensors"
ok $? "another seed, another LoRA"

train -q --db "$dir/p.db" --precision auto --iterations 1 \
    -o "$dir/auto.safetensors" 2>"$dir/err"
if command -v sqlite3 >/dev/null; then
	is "$(sqlite3 "$dir/p.db" 'select precision from attempt')" f32 \
	    "--precision auto: the policy is f32 on every machine"
fi

if has_amx; then
	quiet --precision bf16x3 -o "$dir/split.safetensors"
	ok $? "--precision bf16x3"
	! cmp -s "$dir/a.safetensors" "$dir/split.safetensors"
	ok $? "is not f32"
	train -q --db "$dir/x.db" --precision bf16x3 -j 3 --micro-batch 1 \
	    -o "$dir/split3.safetensors" 2>"$dir/err"
	same "$dir/split.safetensors" "$dir/split3.safetensors" \
	    "three threads and one pair at a time: the same bytes"
	is "$(sqlite3 "$dir/x.db" 'select precision,
	    json_extract(options, "$.lrm_precision") from attempt, run')" \
	    "bf16x3|bf16x3" "the database has the precision"
else
	skip "no AMX: --precision bf16x3"
fi

is "$(status train --db none -o "$dir/a.safetensors")" 0 \
    "the same command again is done already"
grep -q "already done" "$dir/err"
ok $? "and says so"
is "$(status train -q --db none --lr 2e-3 -o "$dir/a.safetensors")" 1 \
    "another run's output is not overwritten"

# kill -9 at five moments, then the same command to the end
k=1
while [ $k -le 5 ]; do
	# shellcheck disable=SC2086
	"$bin/lpo-train" $common -q --db none -o "$dir/k$k.safetensors" \
	    2>/dev/null &
	pid=$!
	sleep "0.$((k * 17 % 10))$k"
	kill -9 $pid 2>/dev/null
	wait $pid 2>/dev/null
	quiet -o "$dir/k$k.safetensors"
	same "$dir/a.safetensors" "$dir/k$k.safetensors" \
	    "killed ($k) and run again: the same bytes"
	k=$((k + 1))
done

# killed, and gone on with cut up otherwise
# shellcheck disable=SC2086
"$bin/lpo-train" $common -q --db none --micro-batch 1 -o "$dir/o.safetensors" \
    2>/dev/null &
pid=$!
wait_for "$dir/o.safetensors.state/plan.json"
grep -q '"pairs":1' "$dir/o.safetensors.state/plan.json"
ok $? "the state says how the work is cut up"
wait_for "$dir/o.safetensors.state/snap-000000007"
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
quiet --micro-batch 4 --segments on -o "$dir/o.safetensors"
same "$dir/a.safetensors" "$dir/o.safetensors" \
    "gone on with segments and other micro-batches: the same bytes"

# SIGTERM: exit 4 with the state kept, unless it was quicker
# shellcheck disable=SC2086
"$bin/lpo-train" $common -q --db none --iterations 60 \
    -o "$dir/t.safetensors" 2>"$dir/err" &
pid=$!
i=0
while [ $i -lt 200 ] && ! ls "$dir"/t.safetensors.state/snap-* \
    >/dev/null 2>&1; do
	sleep 0.05
	i=$((i + 1))
done
i=0
while ! grep -q ' left' "$dir/err" && [ $i -lt 200 ]; do
	kill -USR2 $pid
	sleep 0.05
	i=$((i + 1))
done
grep -q "^lpo-train: train: [0-9]*/60 iterations ([0-9]*%), .* left, \
\(rollout\|scoring\|training\) [0-9]*/[0-9]*, [0-9.]* MB, running " "$dir/err"
ok $? "SIGUSR2: count, rate, time left, phase, memory"
kill -TERM $pid
wait $pid
is $? 4 "SIGTERM is exit 4"
test -d "$dir/t.safetensors.state" && test ! -e "$dir/t.safetensors"
ok $? "state kept, nothing published"
is "$(status train -q --db none --iterations 61 -o "$dir/t.safetensors")" 1 \
    "state of other options is refused"
grep -q "iterations" "$dir/err"
ok $? "and the option named"
if has_amx; then
	is "$(status train -q --db none --iterations 60 --precision bf16x3 \
	    -o "$dir/t.safetensors")" 1 "state in f32 is not for bf16x3"
	grep -q "precision.*f32.*bf16x3" "$dir/err"
	ok $? "which is said"
else
	skip "no AMX: --precision bf16x3"
fi

# what a run says and stores
train --db "$dir/lpo.db" --save-every 1 -o "$dir/s.safetensors" \
    2>"$dir/err"
ok $? "train with a database"
test -s "$dir/s-000001.safetensors"
ok $? "--save-every publishes"
is "$(sqlite3 "$dir/lpo.db" "SELECT count(*) FROM checkpoint")" 2 \
    "both files are in the database"
is "$(sqlite3 "$dir/lpo.db" "SELECT count(DISTINCT step) FROM metric WHERE
    name = 'loss'")" 2 "a loss for each iteration"
is "$(sqlite3 "$dir/lpo.db" "SELECT DISTINCT step FROM metric m
    WHERE name = 'valid' AND value = (SELECT sum(value) FROM metric t
    WHERE t.step = m.step AND t.name LIKE 'valid\_t0%' ESCAPE '\')" |
    tr '\n' ' ')" "1 2 " "the valid pairs by timestep"
sqlite3 "$dir/lpo.db" "SELECT DISTINCT name FROM metric" |
    while read -r name; do
	grep -qw -- "$name" man/lpo-db.5 || echo "$name"
    done > "$dir/err"
test ! -s "$dir/err"
ok $? "lpo-db(5) has the names of all figures"
train --db none -o "$dir/l.safetensors" 2>"$dir/err"
grep -q '^iteration 1/2 .* pairs/s, [0-9a-z ]* left' "$dir/err" &&
    ! grep -q '^iteration 2/2 .* left' "$dir/err"
ok $? "an iteration's line says how long the others take"
train --db none --threshold static:0.99 -o "$dir/h.safetensors" 2>"$dir/err"
grep -q "transitions are valid" "$dir/err"
ok $? "a threshold that nothing passes is explained"

"$bin/lpo-train" -m "$model" -r "$dir/lrm" -p "$dir/prompts.csv" --dry-run \
    --prompts-per-iteration 4 -o "$dir/n.safetensors" >"$dir/out" \
    2>"$dir/err"
ok $? "--dry-run"
grep -q "^activations" "$dir/out" && test ! -e "$dir/n.safetensors"
ok $? "prints bytes and writes nothing"

is "$(status train --dry-run --memory 1M -o "$dir/n.safetensors")" 1 \
    "a run that does not fit is refused"
grep -q "needs .* MiB (UNet .* --memory allows 1 MiB; what would make it fit: \
--memory" "$dir/err"
ok $? "with what it needs and what would make it fit"
need=$(least train -q --db none -o "$dir/n.safetensors")
is "$(status train -q --db none --memory 1M -o "$dir/n.safetensors")" 1 \
    "before it loads anything"
test ! -e "$dir/n.safetensors.state"
ok $? "and leaves no state"
is "$(status train -q --db none --memory "$need" \
    -o "$dir/m.safetensors")" 0 "with that much it runs"
same "$dir/a.safetensors" "$dir/m.safetensors" "to the same bytes"
is "$(status train --db none --memory "$need" --dry-run \
    -o "$dir/n.safetensors")" 0 "and its plan"
if [ -n "${ASAN_OPTIONS-}" ]; then
	skip "has segments: the sanitizers' memory is not known so well"
else
	grep -q "^at once	.*segments on" "$dir/out"
	ok $? "has segments"
fi

is "$(status train -o -)" 2 "a LoRA does not go to standard output"
is "$(status train --threshold nonsense -o "$dir/x.safetensors")" 2 \
    "a threshold that is none is bad usage"
is "$(status train -r "$dir/nowhere" -o "$dir/x.safetensors")" 1 \
    "a reward model that is not there"
printf 'text\nhello\n' > "$dir/bad.csv"
is "$(status "$bin/lpo-train" -m "$model" -r "$dir/lrm" -p "$dir/bad.csv" \
    -o "$dir/x.safetensors")" 1 "prompts without a column"
grep -q "bad.csv" "$dir/err"
ok $? "are named"
test ! -e "$dir/x.safetensors"
ok $? "nothing half-written"
done_testing
