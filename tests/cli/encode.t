#!/bin/sh
# lpo-encode: inputs, bad rows, the same bytes whatever threads, batches,
# parts, kills and resumes.
set -u
. tests/cli/lib.sh

world 60
prefs=$dir/world/prefs.csv
encode() {
	"$bin/lpo-encode" -q -m "$model" --db none "$@" 2>"$dir/err"
}

encode "$prefs" > "$dir/ref.tar"
ok $? "a table to a pipe"
is "$(tar tf "$dir/ref.tar" | wc -l | tr -d ' ')" 182 \
    "three members a row, run and end records"
is "$(tar tf "$dir/ref.tar" | sed -n '1p;$p' | tr '\n' ' ')" \
    "__run__/run.json __end__/end.json " "they stand first and last"

# ---- the same bytes
encode -j 1 "$prefs" -o "$dir/one.tar"
same "$dir/ref.tar" "$dir/one.tar" "one thread, to a file"
encode --memory 1M "$prefs" >/dev/null 2>"$dir/err"
is $? 1 "too little memory is refused"
encode --memory "$(least "$bin/lpo-encode" -q \
    -m "$model" --db none "$prefs")" "$prefs" | cmp -s - "$dir/ref.tar"
ok $? "little memory, small batches"
encode --rows-per-shard 13 "$prefs" -o "$dir/parts.tar"
same "$dir/ref.tar" "$dir/parts.tar" "a file made of parts"
test ! -e "$dir/parts.tar.state"
ok $? "no state is left"

encode --rows-per-shard 17 "$prefs" -o "$dir/s-%02d.tar"
ok $? "shards"
is "$(echo "$dir"/s-*.tar | wc -w | tr -d ' ')" 4 "four of them"
mkdir "$dir/n"
for i in 2 0 1; do
	encode --rows-per-shard 17 --part $i/3 "$prefs" -o "$dir/n/s-%02d.tar"
done
for i in 00 01 02 03; do
	same "$dir/s-$i.tar" "$dir/n/s-$i.tar" "shard $i from three parts"
done
encode --rows-per-shard 16 "$prefs" -o "$dir/s-%02d.tar"
is $? 1 "shards cut in another way are refused"

# ---- a second run
"$bin/lpo-encode" -m "$model" --db none --rows-per-shard 17 "$prefs" \
    -o "$dir/s-%02d.tar" 2>"$dir/err"
is "$? $(cat "$dir/err")" "0 lpo-encode: '$dir/s-%02d.tar' is already done" \
    "the same shards again: already done"
before=$(ls -li --time-style=full-iso "$dir/one.tar")
"$bin/lpo-encode" -m "$model" --db none "$prefs" -o "$dir/one.tar" \
    2>"$dir/err"
is $? 0 "the same command again"
grep -q 'already done' "$dir/err"
ok $? "is already done"
is "$(ls -li --time-style=full-iso "$dir/one.tar")" "$before" \
    "and touches nothing"
encode --dtype f4 "$prefs" -o "$dir/one.tar"
is $? 1 "another run's output is not overwritten"
encode --dtype f4 --force "$prefs" -o "$dir/one.tar"
ok $? "but by --force"

# ---- kill -9, any time, then once more
for t in 0.02 0.05 0.1 0.15 0.2 0.3; do
	"$bin/lpo-encode" -q -m "$model" --db none --rows-per-shard 5 \
	    "$prefs" -o "$dir/k.tar" 2>/dev/null &
	pid=$!
	sleep $t
	kill -9 $pid 2>/dev/null
	wait $pid 2>/dev/null
done
encode --rows-per-shard 5 "$prefs" -o "$dir/k.tar"
ok $? "after six kills it finishes"
same "$dir/ref.tar" "$dir/k.tar" "with the same bytes"
for t in 0.03 0.08 0.16 0.24; do
	"$bin/lpo-encode" -q -m "$model" --db none --rows-per-shard 17 \
	    "$prefs" -o "$dir/k-%02d.tar" 2>/dev/null &
	pid=$!
	sleep $t
	kill -9 $pid 2>/dev/null
	wait $pid 2>/dev/null
done
encode --rows-per-shard 17 "$prefs" -o "$dir/k-%02d.tar"
same "$dir/s-03.tar" "$dir/k-03.tar" "and so do shards"
same "$dir/s-00.tar" "$dir/k-00.tar" "the first one too"

# ---- resumed with pieces of another size: rows would be lost or twice
"$bin/lpo-encode" -q -m "$model" --db none -s 128 -j 1 --rows-per-shard 4 \
    "$prefs" -o "$dir/c.tar" 2>/dev/null &
pid=$!
wait_for "$dir/c.tar.state/000000.tar"
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
encode -s 128 --rows-per-shard 7 "$prefs" -o "$dir/c.tar"
is $? 1 "pieces of another --rows-per-shard are refused"
says "c.tar.state/000000.tar' was made with another --rows-per-shard" "by name"
encode -s 128 --rows-per-shard 4 "$prefs" -o "$dir/c.tar"
is "$?:$(tar tf "$dir/c.tar" | grep -c moments_0)" 0:60 "the same goes on"

# ---- state of another run
mkdir "$dir/h.tar.state"
echo '{"options": {"size_px": 1}, "run": "0123456789abcdef"}' \
    > "$dir/h.tar.state/run.json"
encode --rows-per-shard 5 "$prefs" -o "$dir/h.tar"
is $? 1 "state of another run is refused"
grep -q 'size_px' "$dir/err"
ok $? "naming the option that differs"
encode --rows-per-shard 5 --fresh "$prefs" -o "$dir/h.tar"
same "$dir/ref.tar" "$dir/h.tar" "--fresh discards it"

# ---- bad rows and images
cp -r "$dir/world" "$dir/bad"
sed -i '4s/.*/000002,no pictures here,,,1,0,0,0,0,1/' "$dir/bad/prefs.csv"
head -c 100 "$dir/world/img/000005_0.png" > "$dir/bad/img/000005_0.png"
rm "$dir/bad/img/000007_1.png"
encode "$dir/bad/prefs.csv" -o "$dir/bad.tar"
is $? 3 "bad rows are left out, exit 3"
is "$(grep -c '^lpo-encode: skipped' "$dir/err")" 3 "each one named"
grep -q "row 7: .*000007_1.png" "$dir/err"
ok $? "with row and file"
is "$(tar tf "$dir/bad.tar" | grep -c json)" 59 "the rest is there"
is "$(tar xOf "$dir/bad.tar" __end__/end.json | grep -o '"skipped":3')" \
    '"skipped":3' "the end record counts them"
tar xOf "$dir/ref.tar" 000000030.moments_0.npy > "$dir/a"
tar xOf "$dir/bad.tar" 000000030.moments_0.npy > "$dir/b"
same "$dir/a" "$dir/b" "what is left has the same moments"
encode --rows-per-shard 20 "$dir/bad/prefs.csv" -o "$dir/bp.tar"
is $? 3 "in parts: exit 3 as well"
same "$dir/bad.tar" "$dir/bp.tar" "and the same bytes"

# closed, their numbers would be those of the files opened next
"$bin/lpo-encode" --db none -m "$model" -o "$dir/closed.tar" \
    "$dir/bad/prefs.csv" <&- >&- 2>&-
is $? 3 "without standard input, output and error: exit 3 as well"
same "$dir/bad.tar" "$dir/closed.tar" "words do not go into the output"

# ---- filters act before pictures are opened
encode --filter mpcf2 --where 'label_0 = 1' "$prefs" -o "$dir/f.tar"
ok $? "filters"
got=$(tar tf "$dir/f.tar" | grep -c json)
test "$got" -gt 5 -a "$got" -lt 50
ok $? "leave some rows out ($got members)"
rm -r "$dir/bad/img"
encode --where 0 "$dir/bad/prefs.csv" > /dev/null
is $? 3 "no picture of a filtered row is looked for"
is "$(wc -l < "$dir/err" | tr -d ' ')" 1 "only the bad row is named"

# ---- other inputs: folders, JSON lines, a tar of our own pictures
mkdir "$dir/fold"
for i in 000001 000002; do
	cp "$dir/world/img/${i}_0.png" "$dir/fold/${i}_w.png"
	cp "$dir/world/img/${i}_1.png" "$dir/fold/${i}_l.png"
	echo "a prompt" > "$dir/fold/$i.txt"
done
encode "$dir/fold" > "$dir/fold.tar"
ok $? "a folder of NAME_w, NAME_l"
tar xOf "$dir/fold.tar" 000000000.moments_0.npy > "$dir/a"
tar xOf "$dir/ref.tar" 000000001.moments_0.npy > "$dir/b"
same "$dir/a" "$dir/b" "the same picture, the same moments"
printf '%s\n' '{"prompt":"a","image_0":"fold/000001_w.png","image_1":"fold/000001_l.png","preferred":"tie","mark":7}' > "$dir/x.jsonl"
encode "$dir/x.jsonl" > "$dir/x.tar"
ok $? "JSON lines"
tar xOf "$dir/x.tar" 000000000.json | grep -q '"extra":{"mark":7}.*"label_0":0.5'
ok $? "a tie, and the further column"
encode --images-only "$dir/world/img" > "$dir/i.tar"
ok $? "pictures alone"
is "$(tar tf "$dir/i.tar" | grep -c moments.npy)" 120 "one each"

# ---- what people's tables and folders are like
prompt() {			# prompt TAR: the first sample's
	tar xOf "$1" 000000000.json | sed 's/.*"prompt":"\([^"]*\)".*/\1/'
}
w=$dir/fold/000001_w.png
l=$dir/fold/000001_l.png
mkdir "$dir/odd"
printf '\357\273\277a mark\r\n' > "$dir/odd/a.txt"
cp "$w" "$dir/odd/a_w.png"
cp "$l" "$dir/odd/a_l.png"
echo 'Mac OS X' | tee "$dir/odd/._a_w.png" > "$dir/odd/._a_l.png"
encode "$dir/odd" > "$dir/x.tar"
ok $? "hidden files are no pictures"
is "$(prompt "$dir/x.tar")" "a mark" "a caption without mark and line end"
cp "$l" "$dir/odd/b_l.png"
bad=$(printf 'n\377')
cp "$w" "$dir/odd/${bad}_w.png"
cp "$l" "$dir/odd/${bad}_l.png"
echo p > "$dir/odd/$bad.txt"
encode "$dir/odd" > "$dir/x.tar"
is $? 3 "bad names and lone pictures are left out"
says "b_l.png: no preferred image" "a losing one without the other"
says "its name is not UTF-8" "a name that is no text"
is "$(tar tf "$dir/x.tar" | grep -c json)" 3 "the rest is there"
mkdir "$dir/two" "$dir/two/w" "$dir/two/l"
for i in 1 10 100 1-1; do
	echo "p $i" > "$dir/two/$i.txt"
	cp "$w" "$dir/two/w/$i.png"
	cp "$l" "$dir/two/l/$i.png"
done
mv "$dir/two/l/1.png" "$dir/two/l/1.x.png"
mv "$dir/two/l/10.png" "$dir/two/l/10.jpg"
encode "$dir/two" > /dev/null
is $? 3 "of w and l each finds its own"
says "row 1: $dir/two/w/1.png: no losing image" "1 is not 1.x"
is "$(wc -l < "$dir/err" | tr -d ' ')" 2 "the other three do"
ln -s . "$dir/fold/again"
ln -s ../fold "$dir/fold/and-again"
encode --images-only "$dir/fold" > "$dir/x.tar"
is "$?:$(tar tf "$dir/x.tar" | grep -c moments)" 0:4 \
    "folders that hold themselves: each picture once"
rm "$dir/fold/again" "$dir/fold/and-again"

j='"image_0":"fold/000001_w.png","image_1":"fold/000001_l.png"'
printf '\357\273\277[{"prompt":"a",%s,"preferred":1.0}]\n' "$j" > "$dir/x.json"
encode "$dir/x.json" > "$dir/x.tar"
ok $? "a mark before JSON, a label that became real"
tar xOf "$dir/x.tar" 000000000.json | grep -q '"label_0":0.0,"label_1":1.0'
ok $? "it is the second"
printf '\357\273\277{"prompt":"a",%s,"preferred":0}\n' "$j" > "$dir/x.jsonl"
(cd "$dir" && encode - < x.jsonl > /dev/null)
ok $? "a mark before JSON lines on standard input"
for v in '["a","b"]' '{"en":"a"}'; do
	echo "{\"prompt\":$v,$j,\"preferred\":0}"
done > "$dir/x.jsonl"
encode "$dir/x.jsonl" > /dev/null
is $? 3 "a list is no prompt"
says "row 0: $dir/x.jsonl:1: 'prompt' is a list or an object" "and said"
printf 'prompt,image_0,image_1,label_0\n,%s,%s,1\n' "$w" "$l" > "$dir/x.csv"
"$bin/lpo-encode" -m "$model" --db none "$dir/x.csv" 2>"$dir/err" >/dev/null
says "rows with an empty prompt: 1" "empty prompts are counted"
gzip -c "$prefs" > "$dir/x.csv.gz"
encode "$dir/x.csv.gz" > /dev/null
is $? 1 "a compressed table"
says "x.csv.gz: compressed: unpack it with 'gzip -dc'" "what to do"

# ---- names that are no text
cp "$prefs" "$dir/world/$bad.csv"
"$bin/lpo-encode" -q -m "$model" --db "$dir/bad.db" -o "$dir/$bad.tar" \
    "$dir/world/$bad.csv" 2>"$dir/err"
ok $? "a table and an output whose names are not UTF-8"
same "$dir/ref.tar" "$dir/$bad.tar" "are like others"
cp -r "$model" "$dir/$bad-model"
"$bin/lpo-encode" -q -m "$dir/$bad-model" --db none "$prefs" 2>"$dir/err" |
    cmp -s - "$dir/ref.tar"
ok $? "a model too"
encode --where "prompt = '$bad'" "$prefs" > /dev/null
is $? 2 "an expression is refused"
says "--where: 'prompt = '$bad'' is not UTF-8" "which"

# ---- standard output that goes away, and that is full
{ encode "$prefs"; echo $? > "$dir/st"; } | head -c 3000 > /dev/null
is "$(cat "$dir/st")" 141 "a reader that leaves: 141"
test ! -s "$dir/err"
ok $? "in silence"
encode "$prefs" > /dev/full
is $? 1 "a full disk: 1"
is "$(status "$bin/lpo-encode" -m "$model")" 2 "no input: 2"
is "$(status "$bin/lpo-encode" "$prefs")" 2 "no model: 2"
is "$(status "$bin/lpo-encode" -m "$model" -s 33 --db none "$prefs" \
    -o "$dir/z.tar")" 1 "a size the VAE cannot take: 1"
is "$(status "$bin/lpo-encode" -m "$model" --part 3/3 "$prefs" \
    -o "$dir/z-%d.tar")" 2 "part 3 of 0..2: 2"

# ---- the plan leaves nothing behind
mkdir "$dir/plan"
(cd "$dir/plan" && "$bin/lpo-encode" -m "$model" --dry-run "$prefs" \
    -o p.tar > "$dir/out" 2>"$dir/err")
ok $? "--dry-run"
grep -q '^rows	60$' "$dir/out"
ok $? "counts the rows"
is "$(ls -A "$dir/plan")" "" "and makes no file"

# ---- the database
"$bin/lpo-encode" -q -m "$model" "$prefs" --db "$dir/lpo.db" \
    -o "$dir/d.tar" 2>"$dir/err"
if command -v sqlite3 >/dev/null; then
	is "$(sqlite3 "$dir/lpo.db" 'select count(*) from preference')" 60 \
	    "the preferences are in the database"
	is "$(sqlite3 "$dir/lpo.db" 'select count(*) from attempt')" 1 \
	    "with one attempt"
else
	skip "no sqlite3"
fi
done_testing
