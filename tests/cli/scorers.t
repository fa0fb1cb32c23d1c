#!/bin/sh
# lpo-eval's built-in scorers: a CLIP folder and an aesthetic head against
# transformers' figures, a reward model, all ways pictures come in, the way
# from scores to lpo-pairs' filters, refusals.
set -u
. tests/cli/lib.sh
d=$dir
eval=$bin/lpo-eval
golden=$PWD/tests/golden
clip=$golden/clip

# near FILE FILE NAME: two CSVs, numbers within 1e-5
near() {
	paste -d , "$1" "$2" | awk -F , '
	NF % 2 { bad = 1 }
	{
		n = NF / 2
		for (i = 1; i <= n; i++) {
			if (NR == 1 || i == 1) {
				if ($i != $(i + n)) bad = 1
			} else if ($i == "" || ($i - $(i + n)) ^ 2 > 1e-10)
				bad = 1
		}
	}
	END { exit bad || NR < 2 }'
	ok $? "$3"
}
cd "$d" || exit 1

# ------------------------------------------------------------ a table's images

run 0 "--images" "$eval" --images "$clip/prefs.csv" \
    --scorer "aesthetic=aesthetic:$clip/head.safetensors,$clip" \
    --scorer "clipscore=clip:$clip"
near out "$clip/want.csv" "ids, names and numbers as transformers has them"
cp out scores.csv
set -- "$eval" --images "$clip/prefs.csv" -j 1 \
    --scorer "aesthetic=aesthetic:$clip/head.safetensors,$clip" \
    --scorer "clipscore=clip:$clip"
run 1 "too little memory" "$@" --memory 1
run 0 "one thread, little memory" "$@" --memory "$(least "$@")"
same out scores.csv "the same bytes"
run 0 "bf16" "$eval" --images "$clip/prefs.csv" --precision bf16 \
    --scorer "clipscore=clip:$clip"
cut -d , -f 1,4- scores.csv | paste -d , out - | awk -F , 'NR > 1 {
	for (i = 2; i <= 5; i++) {
		d = ($i - $(i + 5)) ^ 2
		far += d > 0.02 ^ 2
		same += d == 0
	} } END { exit far > 0 || same == 24 }'
ok $? "near the same, and not the same"
# auto is f32 for scorers, whatever it is for pictures.
run_of() {
	"$eval" --images "$clip/prefs.csv" --dry-run "$@" 2> err |
	    sed -n 's/^run	//p'
}
auto=$(run_of --scorer "clip:$clip")
bf16=$(run_of --scorer "clip:$clip" --precision bf16)
test -n "$auto" && test -n "$bf16" && test "$auto" != "$bf16"
ok $? "bf16 is a run of its own ($auto, $bf16)"
mkdir bin
cp "$clip"/*.json "$clip/merges.txt" bin
cp "$clip/head.pth" bin/pytorch_model.bin
run 1 "a head for a model" "$eval" --images "$clip/prefs.csv" \
    --scorer clip:bin
says "bin/pytorch_model.bin: 'vision_model.embeddings.class_embedding' \
is missing" "which key of a torch file"
run 0 "a head as torch has it" "$eval" --images "$clip/prefs.csv" \
    --scorer "aesthetic:$clip/head.pth,$clip"
cut -d , -f 1-3 scores.csv > is
same is out "the same bytes"
run 0 "without a name" "$eval" --images "$clip/prefs.csv" --json \
    --scorer "clip:$clip"
test "$(sed -n 3p out | grep -o '"[a-z.]*_[01]":' | sort | tr -d '\n')" = \
    '"clip.logit_0":"clip.logit_1":"clip_0":"clip_1":'
ok $? "it is called clip"
cat > sides <<'END'
#!/bin/sh
tar -tf - | awk 'BEGIN { print "key\tv" } /\.(png|jpg|webp)$/ {
	split($1, p, /[-.]/); print p[1] "-" p[2] "\t" 10 * p[1] + p[2] }'
END
chmod +x sides
run 0 "a program between two of ours" "$eval" --images "$clip/prefs.csv" \
    --scorer "a=aesthetic:$clip/head.safetensors,$clip" \
    --scorer v=./sides --scorer "c=clip:$clip" -o mixed.csv
test "$(head -1 mixed.csv)" = \
    id,a_0,a_1,v_0,v_1,c_0,c_1,c.logit_0,c.logit_1 &&
    cut -d , -f 4,5 mixed.csv | tail -1 | grep -q '^50,51$'
ok $? "columns in the order of --scorer"
cut -d , -f 1-3,6- mixed.csv > is
{ head -1 is; tail -n +2 scores.csv; } > want
same is want "and ours have the same numbers"

# An image that cannot be read, and one that is none, cost their rows.
mkdir t
cp -r "$clip/img" "$clip/prefs.csv" t
rm t/img/2.webp
head -c 500 "$clip/img/7.jpg" > t/img/7.jpg
run 3 "bad images" "$eval" --images t/prefs.csv --scorer "clipscore=clip:$clip"
says "skipped row 1: 't/img/2.webp': cannot open" "the row without an image"
says "skipped row 3: 't/img/7.jpg':" "the row with a damaged one"
cut -d , -f 1,4- scores.csv | grep -v '^r[13],' > want
same out want "the others are as before"
run 3 "bad images and a program" "$eval" --images t/prefs.csv \
    --scorer "clipscore=clip:$clip" --scorer v=./sides
test "$(cut -d , -f 1 out | tr '\n' ' ')" = "id r0 r2 r4 r5 "
ok $? "the same rows"

# A table without labels, and pictures in a tar as WebDataset has them.
mkdir wds
i=0
while [ $i -lt 6 ]; do
	sed -n "$((i + 2))p" "$clip/prefs.csv" > line
	for k in 0 1; do
		f=$(cut -d , -f $((3 + k)) line)
		cp "$clip/$f" "wds/r$i.$k.${f##*.}"
	done
	echo "{\"prompt\":\"$(cut -d , -f 2 line)\"}" > wds/r$i.json
	i=$((i + 1))
done
tar_of wds
run 0 "a tar" "$eval" --images wds.tar --scorer "clipscore=clip:$clip"
cut -d , -f 1,4- scores.csv > want
same out want "keys are the ids, the numbers are the same"
(cd wds && tar --format=ustar -cf ../w0.tar r[0-3].* &&
    tar --format=ustar -cf ../w1.tar r[45].*)
run 0 "two tars" "$eval" --images w?.tar --scorer "clipscore=clip:$clip"
same out want "the same"
cut -d , -f 1-4 "$clip/prefs.csv" | sed '3s/,[^,]*$/,/' > t/none.csv
run 3 "no labels, and an image missing" "$eval" --images t/none.csv \
    --scorer "clipscore=clip:$clip"
says "skipped row 1: t/none.csv:3: no image_1" "which row"
sed 's/image_1/other/' t/none.csv > t/other.csv
run 1 "a column missing" "$eval" --images t/other.csv --scorer "clip:$clip"
says "t/other.csv: no column 'image_1'" "which column"

# ------------------------------------------------------------- interrupted

# kill_at FILE: what runs in the background is killed when FILE is there.
kill_at() {
	wait_for "$1"
	kill -9 $!
	wait $! 2> /dev/null
}
lines() { wc -l < "$1" | tr -d ' '; }
# Many pictures, so that there is something between a start and an end.
{
	echo id,prompt,image_0,image_1
	i=0
	while [ $i -lt 40 ]; do
		sed -n "$((i % 6 + 2))p" "$clip/prefs.csv" |
		    cut -d , -f 1-4 | sed "s|^[^,]*|p$i|; s|img/|$clip/img/|g"
		i=$((i + 1))
	done
} > many.csv
sed '9s/[^,]*$/gone.png/' many.csv > gone.csv
# first and second say when they run; second waits while `wait' is there.
printf '#!/bin/sh\necho . >> first.runs\n./sides\n' > first
cat > second <<'END'
#!/bin/sh
echo . >> second.runs
touch now
while [ -e wait ]; do sleep 0.1; done
./sides
END
chmod +x first second
cat > many <<END
#!/bin/sh
exec "$eval" --db m.db -j 1 --checkpoint 0 --images gone.csv \\
    --scorer first=./first --scorer "clip:$clip" --scorer second=./second "\$@"
END
chmod +x many
run 3 "many images, undisturbed" ./many
cp out many.want
is "$(grep -c 'skipped row 7: ' err)" 1 "a row without an image is named"
find . -name '*.state' | grep -q .
test $? -ne 0
ok $? "no state is left"
is "$(sqlite3 m.db "select group_concat(role, ' ') from (select role from
    input order by role)")" "images scorer.clip" \
    "the database has the table and the model"
rm m.db now
touch wait
for i in 1 2 3; do
	./many -o m.csv > out 2> err &
	sleep 0.$i
	kill -9 $!
	wait $! 2> /dev/null
done
rm -f now
./many -o m.csv > out 2> err &
kill_at now
test ! -e m.csv
ok $? "killed anywhere, and while the second program works: no table"
rm wait first.runs
run 3 "once more" ./many -o m.csv
same m.csv many.want "the same bytes"
says "78 of 78 pictures are scored already" "nothing was scored twice"
is "$(grep -c 'skipped row 7: ' err)" 1 "the row is named again"
test ! -e first.runs
ok $? "a program that had ended has not run again"
is "$(sqlite3 m.db "select output, status, (select count(*) from attempt) > 1
    from run")" "m.csv|done|1" "one run, its attempts"
test ! -e m.csv.state
ok $? "no state is left"

# To standard output, the state's name is the run's.
rm -f now second.runs
touch wait
./many > out 2> err &
kill_at now
set -- lpo-eval-*.state
is "$1" "lpo-eval-$(sqlite3 m.db 'select run from run').state" \
    "to standard output: state under the run's name"
rm wait
run 1 "a full standard output" sh -c '"$@" > /dev/full' - "$eval" --db m.db \
    -j 1 --images gone.csv --scorer first=./first --scorer "clip:$clip" \
    --scorer second=./second
says "cannot write standard output" "why"
run 3 "again" ./many
same out many.want "the same bytes"
is "$(lines first.runs),$(lines second.runs)" 1,2 "neither has run again"
test ! -e "$1"
ok $? "no state is left"

# SIGTERM: what is scored by then stays, though no checkpoint was due.
rm -f now
touch wait
"$eval" --db none -j 1 --images gone.csv --scorer "clip:$clip" \
    --scorer second=./second -o t.csv > out 2> err &
wait_for now
kill -TERM $!
wait $!
is $? 4 "SIGTERM: exit 4"
says "the same command goes on" "and the way on"
rm wait
cut -d , -f 1,4- many.want > want
run 3 "on from there" "$eval" --db none -j 1 --images gone.csv \
    --scorer "clip:$clip" --scorer second=./second -o t.csv
says "78 of 78 pictures are scored already" "how far it was"
same t.csv want "the same bytes"

# A picture that a built-in scorer could not decode is named again.
run 3 "a damaged picture, undisturbed" "$eval" --db none -j 1 \
    --images t/prefs.csv --scorer "clip:$clip" --scorer second=./second
cp out want
rm -f now
touch wait
"$eval" --db none -j 1 --images t/prefs.csv --scorer "clip:$clip" \
    --scorer second=./second -o t.csv > out 2> err &
kill_at now
rm wait
run 3 "goes on" "$eval" --db none -j 1 --images t/prefs.csv \
    --scorer "clip:$clip" --scorer second=./second -o t.csv
same t.csv want "the same bytes"
says "10 of 10 pictures are scored already" "nothing was decoded again"
is "$(grep -c "skipped row 3: 't/img/7.jpg': " err)" 1 "but it is named"

# Another run's state is not taken.
rm -f now
touch wait
./many -o m.csv > out 2> err &
kill_at now
rm wait
run 1 "another scorer" "$eval" --db none -j 1 --images gone.csv \
    --scorer first=./first -o m.csv
says "m.csv.state' holds the state of another run" "whose state"
says "scorer: " "which option"
run 1 "another table" "$eval" --db none -j 1 --images many.csv \
    --scorer first=./first --scorer "clip:$clip" --scorer second=./second \
    -o m.csv
says "(other inputs or version)" "that it is not an option"
flip "$(find m.csv.state -name scores | sort | tail -1)" 100
run 3 "a damaged snapshot" ./many -o m.csv
says "is damaged" "it is named"
same m.csv many.want "the one before is taken: the same bytes"
rm -f now
touch wait
./many -o m.csv > out 2> err &
kill_at now
rm wait
run 1 "a program that fails" "$eval" --db none --images many.csv \
    --scorer no=false -o no.csv
test ! -e no.csv.state
ok $? "there is nothing to keep"
run 0 "discarded" "$eval" --db none -j 1 --images many.csv \
    --scorer "v=./sides" -o m.csv --fresh
test ! -e m.csv.state
ok $? "--fresh: another run takes its place"

# --------------------------------------------------------- to lpo-pairs

latent_model m
mkdir enc
tail -n +2 "$clip/prefs.csv" | while IFS=, read -r id prompt _ _ preferred; do
	encoded enc "${id#r}" "$id" "$preferred" "$prompt"
done
tar_of enc
# By hand from want.csv: in row r4 the preferred image has the lower aesthetic
# score (by 0.09); in r2 and r5 alone it has the higher cosine.
# shellcheck disable=SC2317  # run calls it
pairs() {
	"$bin/lpo-pairs" -m m --db none --scores scores.csv --stats "$@" \
	    enc.tar
}
run 0 "mpcf1 by the aesthetic score" pairs --filter mpcf1 \
    --mpcf-use aesthetic
grep -q '^filter	mpcf1	6	5$' out
ok $? "five of six pairs"
run 0 "mpcf2" pairs --filter mpcf2 --mpcf-use aesthetic
grep -q '^filter	mpcf2	6	6$' out
ok $? "all six"
run 0 "mpcf2, two criteria" pairs --filter mpcf2 \
    --mpcf-use aesthetic,clipscore
grep -q '^filter	mpcf2	6	2$' out
ok $? "two of six"
run 0 "a column with a dot" pairs --where '"clipscore.logit_1" > 0'
grep -q '^filter	where	6	1$' out
ok $? "one of six"

# ---------------------------------------------------------------- systems

# Three pictures of the golden ones each, prompts as they have them.
sys() {		# sys NAME FILE FILE FILE
	mkdir "$1"
	i=0
	for f in "$2" "$3" "$4"; do
		k=00000000$i-0
		cp "$clip/img/$f" "$1/$k.${f##*.}"
		echo "{\"prompt\":\"$(echo 'a b,d e a b c d,zz' |
		    cut -d , -f $((i + 1)))\"}" > "$1/$k.json"
		i=$((i + 1))
	done
	tar_of "$1"
}
sys a 0.png 4.jpg 10.jpg
sys b 1.jpg 5.webp 11.webp
sys c 0.png 5.webp 11.webp
col() { awk -F , -v r="$1" -v c="$2" '$1 == r { print $c }' "$clip/want.csv"; }
# shellcheck disable=SC2317  # run calls it
all() {
	"$eval" --db e.db --system base=a.tar --system b=b --system c=c.tar \
	    --scorer "clip:$clip" --scorer bytes=./bytes \
	    --scorer "taste=aesthetic:$clip/head.safetensors,$clip" "$@"
}
cat > bytes <<'END'
#!/bin/sh
tar -tvf - | awk 'BEGIN { print "key\tbytes" } $6 ~ /\.(png|jpg|webp)$/ {
	sub(/\.[a-z]*$/, "", $6); print $6 "\t" $3 }'
END
chmod +x bytes
run 0 "three systems, tars and a folder, both kinds of scorers" all \
    --html r.html
cp out table
test "$(cut -f 1,2 out | tr '\n\t' ' .')" = "scorer.system clip.cosine.b \
clip.cosine.c clip.logit.b clip.logit.c bytes.bytes.b bytes.bytes.c \
taste.score.b taste.score.c "
ok $? "all scores of all systems"
awk -F '\t' -v a0="$(col r0 2)" -v a2="$(col r2 2)" -v a5="$(col r5 2)" \
    -v b0="$(col r0 3)" -v b2="$(col r2 3)" -v b5="$(col r5 3)" '
    function near(x, y) { return (x - y) ^ 2 < 1e-10 }
    $1 == "taste.score" && $2 == "b" { n++
	good += near($6, (a0 + a2 + a5) / 3) && near($7, (b0 + b2 + b5) / 3) &&
	    near($8, (b0 + b2 + b5 - a0 - a2 - a5) / 3) && near($11, 1 / 3) }
    $1 == "taste.score" && $2 == "c" { n++
	good += near($8, (b2 + b5 - a2 - a5) / 3) && near($11, 0.5) }
    END { exit !(n == 2 && good == 2) }' out
ok $? "means, differences and wins as from transformers' scores"
test "$(grep -o 'data:image/[a-z]*;base64,' r.html | wc -l)" -ge 9 &&
    grep -q 'clip.cosine' r.html && grep -q 'taste.score' r.html
ok $? "the report has pictures and scores"
test "$(sqlite3 e.db "select count(*) from score")" = 36 &&
test "$(sqlite3 e.db "select group_concat(role, ' ') from (select role from
    input where role like 'scorer%' order by role)")" = \
    "scorer.clip scorer.taste scorer.taste.1"
ok $? "scores and the scorers' files are in the database"
run 0 "again, one thread" all -j 1 --memory "$(least all -j 1)"
same table out "the same table"
run=$(sqlite3 e.db "select run from run order by id limit 1")
cp -r "$clip" moved
"$eval" --db f.db --system base=a.tar --system b=b --system c=c.tar \
    --scorer "clip=clip:moved" --scorer bytes=./bytes \
    --scorer "taste=aesthetic:moved/head.safetensors,moved" \
    --html-images 400 > out 2> err
is "$(sqlite3 f.db "select run from run")" "$run" \
    "the run id is of the files, not of their place"
same table out "and the table is the same"
cp "$clip/head.safetensors" moved/other.safetensors
flip moved/other.safetensors 8000
"$eval" --db g.db --system base=a.tar --system b=b --system c=c.tar \
    --scorer "clip=clip:moved" --scorer bytes=./bytes \
    --scorer "taste=aesthetic:moved/other.safetensors,moved" > out 2> err
test "$(sqlite3 g.db "select run from run")" != "$run"
ok $? "another head is another run"
run 0 "fail-under, met" all --fail-under clip.cosine:winrate=0 \
    --fail-under taste.score:difference=-1
run 5 "fail-under, not met" all --fail-under taste.score:winrate=0.6
says "win rate of 'b' in 'taste.score' is 0.333333, below 0.6" "which and how"
run 2 "fail-under, nobody" all --fail-under taste.cosine:winrate=0
run 1 "a program fails" all --scorer no=false
says "scorer 'no' exited with 1" "it is named"
test ! -s out
ok $? "and there is no table"
rm -r b/000000002-0.webp && head -c 300 "$clip/img/11.webp" \
    > b/000000002-0.webp
run 1 "a damaged picture" all
says "image '000000002-0':" "which picture"

# A scorer that cannot be loaded is told before anything is drawn.
rm -rf lpo-eval-*.state
printf 'a red circle\n' > p.txt
run 1 "scorers before drawing" "$eval" --db none -m "$model" \
    --system one="$model" --system two="$model" -p p.txt --steps 2 \
    --scorer "aesthetic:$clip/prefs.csv,$clip"
says "scorer 'aesthetic': $clip/prefs.csv" "the head's file"
find . -name 'system-*' | grep -q .
test $? -ne 0
ok $? "nothing was drawn"

# ------------------------------------------------------------ reward models

world 6
"$bin/lpo-encode" -q -m "$model" --db none -o demo.tar world/prefs.csv
"$bin/lpo-pairs" -q --db none -o pairs.tar demo.tar
"$bin/lpo-lrm" -q -m "$model" --db none --batch 2 --lr 1e-3 -o lrm pairs.tar
test -f lrm/lrm.json
ok $? "a reward model"
run 0 "lrm" "$eval" -m "$model" --images world/prefs.csv \
    --scorer reward=lrm:lrm -o lrm.csv
test "$(head -1 lrm.csv)" = id,reward_0,reward_1 &&
    test "$(wc -l < lrm.csv)" -eq 7
ok $? "a score for each image"
set -- "$eval" -m "$model" --images world/prefs.csv \
    --scorer reward=lrm:lrm -j 1
run 0 "lrm, one by one" "$@" --memory "$(least "$@")"
same out lrm.csv "the same bytes"
run 0 "lrm beside clip" "$eval" -m "$model" --images world/prefs.csv \
    --scorer reward=lrm:lrm --scorer "clip:$clip"
cut -d , -f 1-3 out > is
same is lrm.csv "and in company"
run 2 "lrm without a model" "$eval" --images world/prefs.csv \
    --scorer lrm:lrm
says "-m is needed" "what for"
mkdir other
cp -r "$model/vae" other
sed 's/"scaling_factor": [0-9.]*/"scaling_factor": 0.5/' \
    "$model/vae/config.json" > other/vae/config.json
run 1 "another latent space" "$eval" -m other --images world/prefs.csv \
    --scorer lrm:lrm
says "the VAE's factor is 0.5" "which factors"
run 1 "no multiple of the VAE's factor" "$eval" -m "$model" -s 33 \
    --images world/prefs.csv --scorer lrm:lrm
says "size 33 is not a multiple" "which size"

# ------------------------------------------------------------------ refusals

i=$clip/prefs.csv
run 2 "a head without a folder" "$eval" --images "$i" \
    --scorer "aesthetic:$clip/head.safetensors"
says "aesthetic:HEAD,DIR" "what is wanted"
run 2 "a folder without a name" "$eval" --images "$i" --scorer clip:
run 2 "twice, once without a name" "$eval" --images "$i" \
    --scorer "clip:$clip" --scorer clip=./sides
says "two are called 'clip'" "which name"
run 1 "no such folder" "$eval" --images "$i" --scorer clip:nowhere
says "cannot open 'nowhere'" "which folder"
run 1 "a diffusion model is no CLIP" "$eval" --images "$i" \
    --scorer "clip:$model/text_encoder"
says "not a CLIP model of two towers" "why"
run 1 "no head" "$eval" --images "$i" --scorer "aesthetic:$i,$clip"
says "$i" "which file"
# A plan and its run agree: what has no scorer or does not fit has no plan.
run 1 "dry run, no such folder" "$eval" --images "$i" --scorer clip:nowhere \
    --dry-run
run 1 "dry run, too little memory" "$eval" --images "$i" \
    --scorer "clip:$clip" --memory 1M --dry-run
says "what would make it fit: --memory" "what would do"
run 0 "dry run" "$eval" --images "$i" --scorer "clip:$clip" --dry-run
grep -q '^images	12$' out && grep -q '^memory of the scorers, at most	' out
ok $? "counts"

done_testing
