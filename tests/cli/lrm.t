#!/bin/sh
# lpo-lrm: the same bytes for any micro-batch, thread count, pipe or file, and
# for runs that were killed; nothing published where something is wrong.
# shellcheck disable=SC2002,SC2010,SC2012  # pipes are meant, names are ours
set -u

. tests/cli/lib.sh

golden=tests/golden/lrm
model=$golden/sd
pid=
trap 'test -n "$pid" && kill -9 "$pid" 2>/dev/null; rm -rf "$dir"' EXIT

lrm() {
	"$bin/lpo-lrm" -q -m "$model" --batch 4 --lr 1e-2 --schedule linear \
	    --db none "$@" 2>"$dir/err"
}

same_folder() {			# same_folder FOLDER FOLDER TEXT
	diff -r "$1" "$2" >/dev/null
	ok $? "$3"
}

# Until the state of $1 has a snapshot of at least step $2.
wait_for_step() {
	i=0
	while [ $i -lt 400 ]; do
		if ls "$1.state" 2>/dev/null | grep -q '^snap-[0-9]*$' &&
		    [ "$(ls "$1.state" | sed -n 's/^snap-0*\([0-9]*\)$/\1/p' |
		    tail -n 1)" -ge "$2" ] 2>/dev/null; then
			return 0
		fi
		sleep 0.05
		i=$((i + 1))
	done
	return 1
}

pairs=$dir/pairs.tar
"$bin/lpo-pairs" -q -m "$model" --epochs 5 --db none -o "$pairs" \
    $golden/moments.tar 2>"$dir/err"
ok $? "pairs from moments"
test $failed -eq 0 || exit 1

lrm -o "$dir/a" "$pairs"
ok $? "train from a file"
test -f "$dir/a/lrm.json" -a -f "$dir/a/state_dict.pt" \
    -a -f "$dir/a/unet/config.json" \
    -a -f "$dir/a/text_encoder/model.safetensors" \
    -a -f "$dir/a/tokenizer/vocab.json"
ok $? "the official layout and lrm.json"
test ! -e "$dir/a.state"
ok $? "no state is left"

lrm -o "$dir/b" -j 1 --micro-batch 1 "$pairs"
same_folder "$dir/a" "$dir/b" "micro-batch 1, one thread: the same bytes"
lrm -o "$dir/c/" -j 2 --micro-batch 3 "$pairs"
same_folder "$dir/a" "$dir/c" "micro-batch 3, two threads: the same bytes"
lrm -o "$dir/c1/" --segments on "$pairs"
same_folder "$dir/a" "$dir/c1" "checkpointed segments: the same bytes"
lrm -o "$dir/c2/" --memory 1M "$pairs"
is $? 1 "a run that does not fit is refused"
grep -q "needs .* MiB (weights .* --memory allows 1 MiB; what would make it \
fit: --memory" "$dir/err" && test ! -e "$dir/c2" && test ! -e "$dir/c2.state"
ok $? "with what it needs and what would make it fit, and leaves nothing"
# The sanitizers' own memory differs from run to run: a quarter more there.
lrm -o "$dir/c2/" --memory "$(sed 's/.*fit: --memory \([0-9]*\)M.*/\1/' \
    "$dir/err" | awk -v more="${ASAN_OPTIONS:+1}" \
    '{ print int($1 * (more ? 1.25 : 1)) "M" }')" "$pairs"
same_folder "$dir/a" "$dir/c2" "with that it runs, to the same bytes"

cat "$pairs" | lrm -o "$dir/p"
ok $? "train from a pipe"
cmp -s "$dir/a/unet/diffusion_pytorch_model.safetensors" \
    "$dir/p/unet/diffusion_pytorch_model.safetensors"
ok $? "the same weights as from a file"

# ---- killed: a writer that stalls holds the run at a known place
half=$(($(wc -c <"$pairs") / 2))
mkfifo "$dir/fifo"
{ head -c "$half" "$pairs"; exec sleep 60; } >"$dir/fifo" &
feeder=$!
"$bin/lpo-lrm" -q -m "$model" --batch 4 --lr 1e-2 --schedule linear \
    --db none -o "$dir/k" --checkpoint 0 <"$dir/fifo" 2>"$dir/err" &
pid=$!
wait_for_step "$dir/k" 3
ok $? "a run saves its state"
kill -9 "$pid"
wait "$pid" 2>/dev/null
pid=
kill "$feeder" 2>/dev/null
wait "$feeder" 2>/dev/null
test -d "$dir/k.state" -a ! -e "$dir/k"
ok $? "killed: the state is there, nothing is published"
cat "$pairs" | "$bin/lpo-lrm" -m "$model" --batch 4 --lr 1e-2 \
    --schedule linear --db none -o "$dir/k" --no-progress 2>"$dir/err"
ok $? "and goes on"
grep -q 'goes on after step' "$dir/err"
ok $? "from where it was"
same_folder "$dir/p" "$dir/k" "to the bytes of a run that was never killed"

# ---- stopped
{ head -c "$half" "$pairs"; exec sleep 60; } >"$dir/fifo" &
feeder=$!
"$bin/lpo-lrm" -q -m "$model" --batch 4 --lr 1e-2 --schedule linear \
    --db none -o "$dir/s" --checkpoint 1000 <"$dir/fifo" 2>"$dir/err" &
pid=$!
sleep 1.5
kill -TERM "$pid"
wait "$pid"
is $? 4 "SIGTERM while it waits for pairs: exit 4"
pid=
kill "$feeder" 2>/dev/null
wait "$feeder" 2>/dev/null
cat "$pairs" | lrm -o "$dir/s"
same_folder "$dir/p" "$dir/s" "and goes on to the same bytes"

# ---- what is wrong with a stream
head -c "$half" "$pairs" | lrm -o "$dir/t"
is $? 1 "a stream that is cut: exit 1"
test ! -e "$dir/t"
ok $? "nothing is published"
cat "$pairs" | lrm -o "$dir/t"
same_folder "$dir/p" "$dir/t" "the whole stream goes on from there"

"$bin/lpo-pairs" -q -m "$model" --epochs 5 --db none --seed 9 \
    -o "$dir/other.tar" $golden/moments.tar 2>"$dir/err"
head -c "$half" "$pairs" | lrm -o "$dir/u"
cat "$dir/other.tar" | lrm -o "$dir/u"
is $? 1 "other pairs for saved state: refused"
cat "$dir/other.tar" | lrm -o "$dir/u" --fresh
ok $? "--fresh starts again"

lrm -o "$dir/v" $golden/moments.tar
is $? 1 "moments instead of pairs"
grep -q lpo-pairs "$dir/err"
ok $? "and says what to do"
lrm -o "$dir/v" --steps 100 "$pairs"
is $? 1 "more steps than pairs"
lrm -o "$dir/v" --batch 1000 "$pairs"
is $? 2 "fewer pairs than a batch"
lrm "$pairs"
is $? 2 "no output"
lrm -o "$dir/." --force "$pairs"
is $? 2 "an output that cannot be exchanged"
lrm -o "$dir/v" --keep best "$pairs"
is $? 2 "--keep best without --eval"

# ---- pairs of several runs
steps() {
	"$bin/lpo-lrm" -m "$model" --batch 4 --db none -o "$dir/r" --dry-run \
	    "$@" 2>"$dir/err" | sed -n 's/^steps	\([0-9]*\) .*/\1/p'
}
one=$(steps "$pairs")
is "$(steps "$pairs" "$dir/other.tar")" $((2 * one)) "two files, all pairs"
cat "$pairs" "$dir/other.tar" > "$dir/both.tar"
is "$(steps "$dir/both.tar")" $((2 * one)) "both in one file"
cat "$pairs" "$pairs" > "$dir/twice.tar"
is "$(steps "$dir/twice.tar")" "" "the same one twice"
says "twice.tar: shard 0 of run" "is refused"
"$bin/lpo-lrm" -m "$model" --batch 4 --lr 1e-2 --db none -o "$dir/r" \
    < "$dir/both.tar" 2>"$dir/err"
ok $? "in a pipe the first run decides the steps"
says "$((4 * one)) stay unused (give the files by name" "and the rest is told"

# ---- streams of others, which have no run id
for i in 0 1; do
	mkdir "$dir/o$i"
	tar xf "$pairs" -C "$dir/o$i" --wildcards "*-e$i.*"
	tar_of "$dir/o$i"
done
lrm --steps 1 --batch 2 -o "$dir/o" < "$dir/o0.tar"
ok $? "a foreign stream"
lrm --steps 1 --batch 2 -o "$dir/o" < "$dir/o1.tar"
is $? 1 "another one is not already done"

# ---- an output that is there
lrm -o "$dir/a" "$pairs"
ok $? "the same again: already done"
lrm -o "$dir/a" --criterion both "$pairs"
is $? 1 "another run needs --force"
lrm -o "$dir/a" --criterion both --force "$pairs"
ok $? "--force overwrites"
cmp -s "$dir/a/state_dict.pt" "$dir/b/state_dict.pt"
is $? 1 "with another model"

# ---- held-out pairs
lrm -o "$dir/e" --eval "$dir/other.tar" --eval-every 4 --keep best "$pairs"
ok $? "--keep best"
"$bin/lpo-lrm" --score -r "$dir/e" --db none "$dir/other.tar" \
    >"$dir/scores" 2>"$dir/err"
ok $? "--score"
is "$(wc -l <"$dir/scores")" 61 "a line a pair"
is "$(head -n 1 "$dir/scores")" "$(printf 'key\tscore_0\tscore_1\tlabel_0')" \
    "with a header"
grep -q 'accuracy, all: 0\.[0-9]* \[' "$dir/err"
ok $? "accuracy with its interval"
right=$(awk -F '\t' 'NR > 1 && $4 != 0.5 { n++
    if (($2 > $3) == ($4 > 0.5)) r++ } END { printf "%.3f", r / n }' \
    "$dir/scores")
grep -q "all: $right " "$dir/err"
ok $? "which is what the lines say"
"$bin/lpo-lrm" --score -r "$dir/e" --db none --json <"$pairs" \
    2>"$dir/err" | head -n 1 | grep -q '^{"key":"0000'
ok $? "--json, from a pipe"
set -- "$bin/lpo-lrm" --score -r "$dir/e" --db none "$dir/other.tar"
for o in "" --dry-run; do
	# shellcheck disable=SC2086  # none, or one
	is "$(status "$@" $o --memory 1M)" 1 "too little memory $o"
	grep -q 'what would make it fit: --memory' "$dir/err"
	ok $? "what would do"
done
is "$(status "$@" --memory "$(least "$@")")" 0 "that does"
same "$dir/out" "$dir/scores" "the same scores"
is "$(status "$@" --dry-run)" 0 "a plan"
grep -q '^pairs	60$' "$dir/out" && grep -q '^memory, at most	' "$dir/out"
ok $? "with memory"

"$bin/lpo-lrm" -m "$model" --batch 4 --dry-run -o "$dir/d" "$pairs" \
    >"$dir/plan" 2>"$dir/err"
ok $? "--dry-run"
grep -q '^steps	15 of 4 pairs' "$dir/plan" && test ! -e "$dir/d" \
    -a ! -e "$dir/d.state" -a ! -e "$dir/lpo.db"
ok $? "says the plan and leaves nothing"
done_testing
