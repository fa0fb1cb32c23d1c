#!/bin/sh
# lpo-sample: pictures whose bytes no batch, thread count, kill or form of
# output changes.
set -u
. tests/cli/lib.sh

"$bin/demo-world" prompts -n 6 --seed 3 --split heldout -o "$dir/p.csv" \
    >/dev/null
sample() {
	"$bin/lpo-sample" -q -m "$model" --db none --steps 5 \
	    -p "$dir/p.csv" -n 2 "$@" 2>"$dir/err"
}

sample > "$dir/ref.tar"
ok $? "to a pipe"
is "$(tar tf "$dir/ref.tar" | grep -c png)" 12 "two pictures of each prompt"
sample -b 5 -j 1 -o "$dir/b.tar"
same "$dir/ref.tar" "$dir/b.tar" "batches of 5, one thread, to a file"
sample --checkpoint 0 -b 3 -o "$dir/c.tar"
same "$dir/ref.tar" "$dir/c.tar" "in parts"
test ! -e "$dir/c.tar.state"
ok $? "no state is left"
sample -o "$dir/f/"
ok $? "to a folder"
mkdir "$dir/x"
tar xf "$dir/ref.tar" -C "$dir/x"
bad=0
for i in "$dir"/x/0*; do
	cmp -s "$i" "$dir/f/${i##*/}" || bad=$((bad + 1))
done
is $bad 0 "the same files as in the tar"
"$bin/lpo-sample" -m "$model" --db none --steps 5 -p "$dir/p.csv" -n 2 \
    -o "$dir/f" 2>"$dir/err"
grep -q 'already done' "$dir/err"
ok $? "again: already done"
sample --seed 1 -o "$dir/f"
is $? 1 "another run's folder is kept"
sample --seed 1 --force -o "$dir/f"
ok $? "but for --force"
cmp -s "$dir/f/000000000-0.png" "$dir/x/000000000-0.png"
is $? 1 "another seed, another picture"

# ---- a picture belongs to its place
head -n 3 "$dir/p.csv" > "$dir/p2.csv"
"$bin/lpo-sample" -q -m "$model" --db none --steps 5 -p "$dir/p2.csv" -n 2 \
    2>"$dir/err" | tar xOf - 000000001-1.json > "$dir/a"
tar xOf "$dir/ref.tar" 000000001-1.json > "$dir/b"
grep -o '"prompt":.*' "$dir/a" > "$dir/a2"
grep -o '"prompt":.*' "$dir/b" > "$dir/b2"
same "$dir/a2" "$dir/b2" "fewer prompts: the same record"
grep -a -q 'Steps: 5, Sampler: DDIM, CFG scale: 5, Seed: 42' \
    "$dir/x/000000001-1.png"
ok $? "parameters as other programs read them"
grep -a -q '"model_sha256"' "$dir/x/000000001-1.png"
ok $? "and our own"

sample -s 4 --precision f32 -o "$dir/small.tar"
ok $? "latents of one pixel"

# ---- prompts as people have them
listed() {			# listed FILE: the prompts of the file
	"$bin/lpo-sample" -m "$model" --db none --steps 1 -s 16 -p "$1" \
	    2>"$dir/err" | tar xOf - --wildcards '0*.json' |
	    grep -o '"prompt":"[^"]*"' | sed 's/.*:"//; s/"/;/' | tr -d '\n'
}
printf 'a cat\n\n  \n\t\na dog\n' > "$dir/q.txt"
is "$(listed "$dir/q.txt")" "a cat;a dog;" "lines of blanks are none"
echo '{"prompt":"a cat","negative":"a dog"}' > "$dir/q.json"
is "$(listed "$dir/q.json")" "a cat;" "an object that is a prompt"
echo '{"prompt":"a cat","x":{"prompt":"a dog"}}' > "$dir/q.json"
is "$(listed "$dir/q.json")" "a cat;" "whatever else it has"
echo '{"1":{"prompt":"a cat"},"2":"a dog"}' > "$dir/q.json"
is "$(listed "$dir/q.json")" "a cat;a dog;" "and one of prompts"
printf 'id,prompt\n1,a cat\n2,\n3,\n' > "$dir/q.csv"
is "$(listed "$dir/q.csv")" "a cat;;;" "prompts may be empty"
grep -q "q.csv:3: an empty prompt, 2 in all" "$dir/err"
ok $? "which is said"

# ---- prompts through a pipe are known by what they are, in each program
id() {				# id PROMPT TOOL OPTION...: of the planned run
	prompt=$1 tool=$2
	shift 2
	printf 'prompt\n%s\n' "$prompt" | "$bin/$tool" -v -m "$model" \
	    --db none -p /dev/stdin --dry-run "$@" 2>&1 | sed -n 's/^lpo-[a-z]*: run //p'
}
for t in "lpo-sample -o $dir/p.tar" \
    "lpo-eval --system a=$model --system b=$model --scorer j=true" \
    "lpo-train -m random:tiny -r random:tiny -o $dir/p.safetensors"; do
	# shellcheck disable=SC2086  # words
	a=$(id 'a cat' $t) b=$(id 'a dog' $t)
	test -n "$a" -a -n "$b" -a "$a" != "$b"
	ok $? "${t%% *}: other prompts in the pipe, another run"
done
printf 'prompt\na cat\n' | "$bin/lpo-sample" -m "$model" --db none \
    -p /dev/stdin --lora /dev/stdin -o "$dir/p.tar" 2>"$dir/err"
grep -q "'/dev/stdin' is not a regular file" "$dir/err"
ok $? "a LoRA comes from a file"

# ---- other noise
sample --eta 1 | cmp -s - "$dir/ref.tar"
is $? 1 "--eta adds noise"
sample --rng torch-cpu > "$dir/cpu.tar"
ok $? "torch's generator"
sample --rng torch-cuda > "$dir/cuda.tar"
ok $? "torch's other generator"
cmp -s "$dir/cpu.tar" "$dir/cuda.tar"
is $? 1 "which is another one"

# ---- kill -9 and signals
for t in 0.05 0.1 0.2 0.3; do
	"$bin/lpo-sample" -q -m "$model" --db none --steps 5 -p "$dir/p.csv" \
	    -n 2 -b 2 --checkpoint 0 -o "$dir/k.tar" 2>/dev/null &
	pid=$!
	sleep $t
	kill -9 $pid 2>/dev/null
	wait $pid 2>/dev/null
done
sample -b 2 -o "$dir/k.tar"
same "$dir/ref.tar" "$dir/k.tar" "after four kills: the same bytes"

"$bin/lpo-sample" -q -m "$model" --db none --steps 100 -p "$dir/p.csv" \
    -n 300 -b 1 -o "$dir/l.tar" 2>"$dir/err" &
pid=$!
wait_for "$dir/l.tar.state/run.json"
i=0
while ! grep -q ' left' "$dir/err" && [ $i -lt 400 ]; do
	kill -USR2 $pid
	sleep 0.05
	i=$((i + 1))
done
grep -q 'lpo-sample: sample: [0-9]*/1800 pictures ([0-9]*%), .* left, [0-9.]* MB, running [0-9]* s$' "$dir/err"
ok $? "SIGUSR2: a line of progress"
kill -TERM $pid
wait $pid
is $? 4 "SIGTERM: exit 4"
test ! -e "$dir/l.tar" -a -d "$dir/l.tar.state"
ok $? "nothing published, the state kept"

# ---- wrong use
is "$(status "$bin/lpo-sample" -m "$model")" 2 "no prompts"
is "$(status "$bin/lpo-sample" -p "$dir/p.csv")" 2 "no model"
sample -s 34 -o "$dir/z.tar"
is $? 1 "a size the VAE cannot take"
sample -o "$dir/z-%d.tar"
is $? 2 "no pattern"
mkfifo "$dir/fifo"
sample -o "$dir/fifo"
is $? 1 "a pipe by name"
grep -q "fifo' is neither a file nor a folder: --force writes to it" \
    "$dir/err"
ok $? "it is not waited for"
sample -o ""
is $? 2 "an output without a name"
cat "$dir/fifo" > "$dir/piped.tar" &
sample --force -o "$dir/fifo"
wait $!
same "$dir/ref.tar" "$dir/piped.tar" "--force writes to it"
sample --lora a --lora b -o "$dir/z.tar"
is $? 2 "a LoRA that would be dropped"
sample --lora "$dir/none.safetensors" -o "$dir/z.tar"
is $? 1 "a LoRA that is not there"
{ sample; echo $? > "$dir/st"; } | true
is "$(cat "$dir/st")" 141 "a reader that leaves: 141"
sample --dry-run | grep -q '^pictures	12$'
ok $? "--dry-run"
steady() {			# what does not change from run to run
	grep -v '^time\|^memory\|^program'
}
sample --dry-run | steady > "$dir/plan"
sample --dry-run --json > "$dir/out"
sed -n 's/^{"name":"\([^"]*\)","value":"\([^"]*\)"}$/\1	\2/p' "$dir/out" |
    steady | cmp -s - "$dir/plan"
ok $? "the same as JSON, an object a line"
done_testing
