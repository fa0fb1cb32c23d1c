#!/bin/sh
# lpo-pairs: the same bytes from files and pipes, any threads; filters, epochs,
# order; no damage goes unseen.
set -u
. tests/cli/lib.sh

world 80
(cd "$dir" && "$bin/lpo-encode" -q -m "$model" --db none \
    --rows-per-shard 30 world/prefs.csv -o e-%d.tar &&
    "$bin/lpo-encode" -q -m "$model" --db none world/prefs.csv -o e.tar)
e=$dir/e.tar
pairs() {
	"$bin/lpo-pairs" -q --db none "$@" 2>"$dir/err"
}
keys() {
	tar tf - | sed -n 's/\.json$//p' | grep -v __
}

pairs "$e" > "$dir/ref.tar"
ok $? "a file to a pipe"
is "$(tar tf "$dir/ref.tar" | wc -l | tr -d ' ')" 242 "all rows"

# ---- the same bytes
pairs -j 1 < "$e" | cmp -s - "$dir/ref.tar"
ok $? "from a pipe, one thread"
pairs "$e" -o "$dir/f.tar"
same "$dir/ref.tar" "$dir/f.tar" "to a file"
pairs "$dir/e-%d.tar" | cmp -s - "$dir/ref.tar"
ok $? "from a pattern"
cat "$dir"/e-?.tar | pairs | cmp -s - "$dir/ref.tar"
ok $? "from shards through cat"
pairs "$dir/e-2.tar" "$dir/e-0.tar" "$dir/e-1.tar" --in-order | keys |
    head -n 1 > "$dir/out"
is "$(cat "$dir/out")" 000000060-e0 "--in-order keeps the order given"
mv "$dir/e-1.tar" "$dir/gone"
pairs "$dir/e-*.tar" > /dev/null
is $? 1 "a gap in a sequence is refused"
says "shard 1 is missing, of 3 (--allow-missing goes on without)" "which"
cat "$dir"/e-?.tar | pairs > /dev/null
is $? 1 "also through a pipe"
says "shard 1 is missing, of 3" "which"
pairs --allow-missing "$dir/e-*.tar" | keys > "$dir/out"
is "$(wc -l < "$dir/out" | tr -d ' ')" 50 "but with --allow-missing"
mv "$dir/gone" "$dir/e-1.tar"
cat "$dir"/e-?.tar > "$dir/all.tar"
pairs "$dir/all.tar" | cmp -s - "$dir/ref.tar"
ok $? "from shards one after the other in one file"
"$bin/lpo-encode" -q -m "$model" --db none --exif "$dir/world/prefs.csv" \
    -o "$dir/exif.tar" 2>"$dir/err"
pairs "$e" "$dir/exif.tar" > /dev/null
is $? 1 "the same rows twice are refused"
says "row 0 is there twice: give several inputs to one lpo-encode" "what to do"
pairs "$dir"/e-?.tar "$dir/e-1.tar" > /dev/null
is $? 1 "a shard twice is refused"
says "e-1.tar: shard 1 of run" "which"
"$bin/lpo-encode" -q -m "$model" --db none --rows-per-shard 40 \
    "$dir/world/prefs.csv" -o "$dir/two-%d.tar" 2>"$dir/err"
pairs "$dir"/e-?.tar "$dir"/two-?.tar > /dev/null
is $? 1 "shards of two sequences are refused"
says "two-0.tar: shard 0 of run" "which"
"$bin/lpo-encode" -q -m "$model" --db none -s 48 --rows-per-shard 30 \
    "$dir/world/prefs.csv" -o "$dir/large-%d.tar" 2>"$dir/err"
pairs "$dir/e-0.tar" "$dir/e-1.tar" "$dir/large-2.tar" > /dev/null
is $? 1 "latents of two sizes are refused"
says "large-2.tar: 'size_px' is 48, but 32 in what was read before" "which"
"$bin/lpo-encode" -q -m "$model" --db none --exif --rows-per-shard 30 \
    "$dir/world/prefs.csv" -o "$dir/exif-%d.tar" 2>"$dir/err"
pairs "$dir/e-0.tar" "$dir/e-1.tar" "$dir/exif-2.tar" > /dev/null
is $? 1 "a shard of another run fills no gap"
says "shard 2 is missing, of 3" "which"
pairs "$dir/nothing-*.tar" > /dev/null
is $? 1 "a pattern that nothing fits"
says "no file '$dir/nothing-*.tar'" "which"
is "$(pairs --seed 43 "$e" | cmp -s - "$dir/ref.tar"; echo $?)" 1 \
    "another seed gives other pairs"

"$bin/lpo-pairs" --db none --skip 80 "$e" > /dev/null 2>"$dir/err"
says "no pair is left after --skip 80" "nothing behind the end"

# ---- epochs, order, skip and limit
pairs --epochs 3 "$e" > "$dir/3.tar"
keys < "$dir/3.tar" > "$dir/keys"
is "$(wc -l < "$dir/keys" | tr -d ' ')" 240 "three epochs"
is "$(sort -u "$dir/keys" | wc -l | tr -d ' ')" 240 "no key twice"
is "$(sed -n '1,80p' "$dir/keys" | cut -c1-9 | sort -u | wc -l |
    tr -d ' ')" 80 "each epoch has every row"
sed -n '1,80p' "$dir/keys" | cut -c1-9 > "$dir/a"
sed -n '81,160p' "$dir/keys" | cut -c1-9 > "$dir/b"
cmp -s "$dir/a" "$dir/b"
is $? 1 "in another order"
pairs --epochs 3 --skip 100 --limit 60 "$e" | keys > "$dir/out"
sed -n '101,160p' "$dir/keys" | diff - "$dir/out" > "$dir/err"
ok $? "--skip and --limit cut that order"
k=$(sed -n 120p "$dir/keys")
pairs --epochs 3 --skip 119 --limit 1 "$e" > "$dir/k.tar"
tar xOf "$dir/3.tar" "$k.latent_1.npy" > "$dir/a"
tar xOf "$dir/k.tar" "$k.latent_1.npy" > "$dir/b"
same "$dir/a" "$dir/b" "a pair does not depend on the pairs around it"
pairs --filter mpcf2 --epochs 2 "$e" > "$dir/m.tar"
k=$(keys < "$dir/m.tar" | grep e0 | tail -n 1)
tar xOf "$dir/m.tar" "$k.latent_0.npy" > "$dir/a"
tar xOf "$dir/3.tar" "$k.latent_0.npy" > "$dir/b"
same "$dir/a" "$dir/b" "nor on the filters"

# ---- options
pairs --timesteps 401 "$e" > "$dir/t.tar"
is "$(tar xOf "$dir/t.tar" 000000007-e0.json |
    grep -o '"timestep_[01]":[0-9]*' | tr '\n' ' ')" \
    '"timestep_0":401 "timestep_1":401 ' "one timestep"
pairs --timesteps 5,1 "$e" >/dev/null
is $? 2 "a list that does not ascend"
pairs --timesteps 1000 "$e" >/dev/null
is $? 1 "a timestep the model has not"
pairs --drop-ties --compare-timesteps 2 "$e" > "$dir/c.tar"
keys < "$dir/c.tar" > "$dir/out"
ties=$(pairs --stats "$e" | awk '$2 == "tie" { print $4 }')
is "$(grep -c -- '-t$' "$dir/out")" $((80 - ties)) \
    "a cross pair for each row somebody won"
k=$(grep -- '-t$' "$dir/out" | head -n 1)
tar xOf "$dir/c.tar" "$k.json" | awk -F '[:,}]' '{
	for (i = 1; i < NF; i++) v[$i] = $(i + 1)
	d = v["\"timestep_0\""] - v["\"timestep_1\""]
	w = v["\"label_0\""] > v["\"label_1\""]
	exit !((d == 100 && !w) || (d == -100 && w))
}'
ok $? "two candidates apart, the cleaner one wins"
pairs --noise-offset 0.1 "$e" | cmp -s - "$dir/ref.tar"
is $? 1 "--noise-offset changes the noise"
pairs --dtype f4 "$e" | tar xOf - 000000000-e0.latent_0.npy | wc -c |
    tr -d ' ' > "$dir/out"
is "$(cat "$dir/out")" 1152 "--dtype f4"
pairs --where 'aesthetic_gap >' "$e" > /dev/null
is $? 1 "a faulty expression"
pairs --filter mpcf9 "$e" > /dev/null
is $? 2 "a filter that is none"

# ---- looking, without tensors
pairs --stats --filter mpcf2 "$e" > "$dir/out"
is "$(awk '$1 == "output" { print $3 }' "$dir/out")" 80 "--stats: rows in"
kept=$(awk '$1 == "output" { print $4 }' "$dir/out")
is "$(awk '$1 == "timestep" { s += $4 } END { print s }' "$dir/out")" \
    "$kept" "--stats: timesteps add up"
is "$(pairs --filter mpcf2 "$e" | keys | wc -l | tr -d ' ')" "$kept" \
    "--stats: as many as come out"
pairs --dump "$dir/d.db" --epochs 2 "$e"
ok $? "--dump"
if command -v sqlite3 >/dev/null; then
	is "$(sqlite3 "$dir/d.db" 'select count(*), count(distinct row),
	    count(aesthetic_gap) from pair')" "160|80|160" \
	    "a table with every column"
else
	skip "no sqlite3"
fi
# Columns of every type, one that ours hide, two that differ in case.
i=0
while [ $i -lt 3 ]; do
	f=$(printf 'img/%06d_0.png' $i)
	echo "{\"prompt\":\"p\",\"image_0\":\"$f\",\"image_1\":\"$f\",
	    \"preferred\":0,\"n\":$i,\"x\":0.1,\"s\":\"it's \\\"$i\\\"\",
	    \"l\":[1,\"a\"],\"b\":true,\"none\":null,\"Key\":7,\"S\":2}" |
	    tr -d '\n\t'
	echo
	i=$((i + 1))
done > "$dir/world/types.jsonl"
"$bin/lpo-encode" -q -m "$model" --db none "$dir/world/types.jsonl" \
    -o "$dir/types.tar" 2> "$dir/err"
pairs --dump "$dir/t.db" "$dir/types.tar"
ok $? "--dump of further columns"
if command -v sqlite3 >/dev/null; then
	is "$(sqlite3 "$dir/t.db" "select n, typeof(n), x, typeof(x), S, l, b,
	    \"extra.Key\", \"extra.s\" from pair where row = 2")" \
	    "2|integer|0.1|real|2|[1,\"a\"]|true|7|it's \"2\"" \
	    "each as it is"
else
	skip "no sqlite3"
fi
cp "$dir/types.tar" "$dir/mine"
pairs --dump "$dir/mine" "$dir/types.tar"
is $? 1 "--dump over another file is refused"
same "$dir/mine" "$dir/types.tar" "which stays"
pairs --dump "$dir/mine" --dry-run --force "$dir/types.tar" > "$dir/out"
grep -q '^output pairs	' "$dir/out" && cmp -s "$dir/mine" "$dir/types.tar"
ok $? "--dump: a plan writes nothing"
pairs --dump "$dir/mine" --force "$dir/types.tar" &&
    ! cmp -s "$dir/mine" "$dir/types.tar"
ok $? "--dump: --force overwrites it"
for o in --stats "--dump $dir/new.db"; do
	# shellcheck disable=SC2086  # an option and its argument
	pairs $o -o "$dir/new.tar" "$e" > /dev/null
	is $? 2 "$o has no --output"
done
pairs --mpcf-use aesthetic "$e" > /dev/null
is $? 2 "--mpcf-use without --filter"
says "--mpcf-use needs --filter" "said"
mkdir "$dir/d.dir"
pairs --dump "$dir/d.dir" "$dir/types.tar"
is $? 1 "--dump to a folder"
says "$dir/d.dir" "which"
find "$dir" -name 'd.dir.tmp*' | grep -q .
is $? 1 "and nothing is left"
pairs --dry-run "$e" | grep -q '^output pairs	80$'
ok $? "--dry-run"

# ---- streaming
pairs --shuffle 16 < "$e" > "$dir/s.tar"
ok $? "--shuffle streams"
is "$(keys < "$dir/s.tar" | sort -u | wc -l | tr -d ' ')" 80 "every row once"
pairs --shuffle 16 -j 1 "$dir/e-%d.tar" > "$dir/s2.tar"
tar xOf "$dir/s.tar" 000000011-e0.latent_0.npy > "$dir/a"
tar xOf "$dir/ref.tar" 000000011-e0.latent_0.npy > "$dir/b"
same "$dir/s.tar" "$dir/s2.tar" "the same from shards, one thread"
same "$dir/a" "$dir/b" "and the same pairs as without"
pairs --shuffle 16 --epochs 2 "$e" > /dev/null
is $? 2 "one epoch only"

# Shards of others have no run id: their bytes belong to the command.
for i in 1 2; do
	mkdir "$dir/f$i"
	tar xf "$e" -C "$dir/f$i" --wildcards "00000000$i.*"
	tar_of "$dir/f$i"
done
pairs --shuffle 4 -m "$model" -o "$dir/f.shuffled" "$dir/f1.tar"
pairs --shuffle 4 -m "$model" -o "$dir/f.shuffled" "$dir/f2.tar"
is $? 1 "another foreign input is not already done"

# Two inputs with the same rows would share their noise.
"$bin/lpo-encode" -q -m "$model" --db none --dtype f4 "$dir/world/prefs.csv" \
    -o "$dir/e4.tar" 2>"$dir/err"
pairs --shuffle 16 "$e" "$dir/e4.tar" > /dev/null
is $? 1 "the same rows twice are refused here too"
says "row 0 is there twice: give several inputs to one lpo-encode" "what to do"

# ---- shards of other models: the output can say one scale only
cp -r "$model" "$dir/scaled"
sed 's/"scaling_factor": *[0-9.]*/"scaling_factor": 0.5/' \
    "$model/vae/config.json" > "$dir/scaled/vae/config.json"
(cd "$dir" && "$bin/lpo-encode" -q -m scaled --db none \
    --rows-per-shard 30 world/prefs.csv -o s-%d.tar && mkdir mixed &&
    cp e-0.tar e-2.tar mixed && cp s-1.tar mixed/e-1.tar) 2>"$dir/err"
pairs "$dir/mixed/e-%d.tar" > /dev/null
is $? 1 "a shard of another model is refused"
says "mixed/e-1.tar: 'latent' is " "which"
pairs --allow-missing "$dir/e-0.tar" "$dir/s-1.tar" > /dev/null
is $? 1 "also where gaps are allowed"

# ---- what nobody could do again
pairs --where 'random() > 0' "$e" > /dev/null
is $? 1 "no chance in --where"
says "not authorized to use function: random" "it says so"
sed '1s/clipscore_gap/ID/; 1s/^id,/name,/' "$dir/world/prefs.csv" \
    > "$dir/world/case.csv"
"$bin/lpo-encode" -q -m "$model" --db none "$dir/world/case.csv" \
    -o "$dir/case.tar" 2>"$dir/err"
pairs --where 'ID > 0' "$dir/case.tar" > /dev/null
is $? 1 "a column that differs from ours in case only"
says "the columns 'id' and 'ID' differ in case only" "which"
pairs --where 'label_0 = 1 and length(prompt) > 3' "$dir/case.tar" > /dev/null
ok $? "does not matter where it is not asked for"

# ---- missing scores that a program wrote as text
awk -F, 'NR == 1 { print "id,judge" } NR > 1 { print $1 "," \
    (NR % 2 ? 3 : NR % 4 ? "nan" : "-NaN") }' "$dir/world/prefs.csv" \
    > "$dir/nan.csv"
is "$(pairs --scores "$dir/nan.csv" --where 'judge > 1' --stats "$e" |
    awk '$1 == "filter" && $2 == "where" { print $4 }')" 40 "a NaN is no score"
sed 's/nan/NA/' "$dir/nan.csv" > "$dir/na.csv"
"$bin/lpo-pairs" --db none --scores "$dir/na.csv" --where 'judge > 1' --stats \
    "$e" >/dev/null 2>"$dir/err"
says "the column 'judge' has texts and numbers" "of other texts it is told"
is "$(wc -l < "$dir/err" | tr -d ' ')" 1 "once"

# ---- shards out
pairs --pairs-per-shard 33 "$e" -o "$dir/o-%d.tar"
ok $? "to shards"
is "$(cat "$dir"/o-?.tar | tar tif - | grep -c latent_0)" 80 "all pairs"
cp "$dir/o-1.tar" "$dir/o1"
rm "$dir/o-1.tar"
pairs --pairs-per-shard 33 "$e" -o "$dir/o-%d.tar"
same "$dir/o1" "$dir/o-1.tar" "a second run makes what is absent"
"$bin/lpo-pairs" --db none --pairs-per-shard 33 "$e" -o "$dir/o-%d.tar" \
    2>"$dir/err"
is "$? $(cat "$dir/err")" "0 lpo-pairs: '$dir/o-%d.tar' is already done" \
    "a third one says so"

# ---- damage
size=$(wc -c < "$e")
missed=0
i=0
while [ $i -lt 24 ]; do
	cp "$e" "$dir/x.tar"
	flip "$dir/x.tar" $(((i * 7919 + 100) * 97 % size))
	pairs "$dir/x.tar" > "$dir/x" && ! cmp -s "$dir/x" "$dir/ref.tar" &&
	    missed=$((missed + 1))
	pairs < "$dir/x.tar" > "$dir/x" && ! cmp -s "$dir/x" "$dir/ref.tar" &&
	    missed=$((missed + 1))
	i=$((i + 1))
done
is $missed 0 "24 flipped bits, file and pipe: none changes the output unseen"
missed=0
for k in 0 1 511 512 513 1024 20000 $((size / 2)) $((size - 1024)) \
    $((size - 1536)) $((size - 2048)); do
	head -c "$k" "$e" > "$dir/x.tar"
	pairs "$dir/x.tar" > /dev/null && missed=$((missed + 1))
	pairs < "$dir/x.tar" > /dev/null && missed=$((missed + 1))
	pairs --shuffle 5 < "$dir/x.tar" > /dev/null && missed=$((missed + 1))
done
is $missed 0 "cut anywhere: refused"
pairs "$dir/ref.tar" > /dev/null
is $? 1 "pairs are no moments"
for o in --in-order --shuffle=5; do
	pairs $o < "$dir/ref.tar" > /dev/null
	is $? 1 "from a pipe neither, $o"
	says "'standard input' holds pairs, not moments" "said"
done
gzip -c "$e" | pairs > /dev/null
is $? 1 "a compressed stream"
says "standard input: compressed: unpack it with 'gzip -dc'" "what to do"
pairs "$dir/nothing.tar" > /dev/null
is $? 1 "a missing file"

# ---- standard output
{ pairs --epochs 20 "$e"; echo $? > "$dir/st"; } | head -c 3000 > /dev/null
is "$(cat "$dir/st")" 141 "a reader that leaves: 141"
pairs "$e" > /dev/full
is $? 1 "a full disk: 1"
pairs "$e" -o /dev/full
is $? 1 "by name too"
pairs "$e" -o ''
is $? 2 "an empty name"
done_testing
