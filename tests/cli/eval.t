#!/bin/sh
# lpo-eval: scorers as programs, paired results by hand, existing images,
# pooled runs, refusals.
set -u
. tests/cli/lib.sh
d=$dir
eval=$bin/lpo-eval

# ------------------------------------------------------------ two systems

world 3
images() { find "$d/world/img" -name '*.png' | sort; }
# system FOLDER MARK: three prompts, two pictures each; the member without a
# dot tells the scorer which system it sees, and is no sample.
system() {
	mkdir "$d/$1"
	images | {
		i=0
		while read -r f; do
			k=00000000$((i / 2))-$((i % 2))
			cp "$f" "$d/$1/$k.png"
			echo "{\"prompt\":\"prompt $((i / 2))\"}" \
			    > "$d/$1/$k.json"
			i=$((i + 1))
		done
	}
	: > "$d/$1/$2"
	tar_of "$d/$1"
}
system a A
system b B

cat > "$d/scores" <<'END'
A 000000000-0 1
A 000000000-1 2
A 000000001-0 0
A 000000001-1 4
A 000000002-0 -1
A 000000002-1 0.5
B 000000000-0 2
B 000000000-1 2
B 000000001-0 1
B 000000001-1 3
B 000000002-0 1
B 000000002-1 1.5
END
# Lines in reverse order: any order will do.
cat > "$d/judge" <<'EOF'
#!/bin/sh
tar -tf - | awk -v table="$SCORES" '
BEGIN { while ((getline < table) > 0) value[$1 " " $2] = $3 }
$1 == "A" || $1 == "B" { system_ = $1 }
/\.png$/ { sub(/\.png$/, ""); key[n++] = $1 }
END {
	print "key\tgood\tflat"
	while (n-- > 0)
		printf "%s\t%s\t7\n", key[n], value[system_ " " key[n]]
}'
EOF
chmod +x "$d/judge"
SCORES=$d/scores
export SCORES
cd "$d" || exit 1

# shellcheck disable=SC2317  # run calls it
pair() {
	"$eval" --db "$d/x.db" --system one="$d/a.tar" \
	    --system two="$d/b.tar" "$@"
}

run 0 "two tars" pair --scorer judge=./judge
# By hand: differences of the prompts .5, 0, 1.5, win rates .75, .5, 1; of the
# 27 resamples of three prompts one in 27 is thrice the same, so the ends of
# the 95 % interval are the least and the largest value.
cat > want <<'END'
scorer	system	base	n_prompts	n_images	mean_base	mean_system	difference	difference_low	difference_high	win_rate	win_rate_low	win_rate_high
judge.flat	two	one	3	6	7	7	0	0	0	0.5	0.5	0.5
judge.good	two	one	3	6	1.08333	1.75	0.666667	0	1.5	0.75	0.5	1
END
{ head -1 out; tail -n +2 out | sort; } > sorted
same want sorted "the table is what one computes by hand"
says unverified "foreign tars are named as unverified"
set -- *.state
test "$1" = '*.state'
ok $? "no state is left"

test "$(sqlite3 x.db "select count(*) from score")" = 24 &&
test "$(sqlite3 x.db "select group_concat(difference) from result
    where scorer = 'judge.good'")" = 0.666666666666667
ok $? "scores and results are in the database"

run 0 "json" pair --scorer judge=./judge --json
jq_free=$(grep -c '^{.*"win_rate":0.75.*}$' out)
test "$jq_free" = 1 && test "$(wc -l < out)" -eq 2
ok $? "an object a line"

run 0 "-o and a report" pair --scorer judge=./judge -o res.tsv \
    --html report.html
test ! -s out && tail -n +2 res.tsv | sort | cmp -s - sorted 2> /dev/null
tail -n +2 sorted > body
tail -n +2 res.tsv | sort | cmp -s - body
ok $? "-o has the table"
is "$(sqlite3 x.db "select tool from made where path = 'res.tsv'")" lpo-eval \
    "the database knows who made it"
test "$(grep -o 'data:image/png;base64,' report.html | wc -l)" -ge 12 &&
    grep -q "prompt 2" report.html
ok $? "the report has all pictures and prompts"

run 0 "folders" "$eval" --db none --system one="$d/a" --system two="$d/b" \
    --scorer "judge=./judge | cut -f 1,3"
grep judge.flat want > is
tail -n +2 out | cmp -s - is
ok $? "a folder of pictures is a system too"
run 1 "folders, a scorer that fails" "$eval" --db none \
    --system one="$d/a" --system two="$d/b" --scorer judge=false
set -- lpo-eval-*.state
test -f "$1/system-1.tar"
ok $? "the pictures stay"
run 0 "folders, another scorer" "$eval" --db none \
    --system one="$d/a" --system two="$d/b" --scorer "j=./judge | cut -f 1,3"
test ! -e "$1"
ok $? "it takes them up"

run 0 "three systems" pair --system three="$d/a.tar" --scorer judge=./judge
test "$(grep -c '	three	one	' out)" = 2
ok $? "each is compared with the first"

for o in -o --html; do
	run 1 "$o a folder" pair --scorer judge=./nothing $o "$d/a"
	says "lpo-eval: '$d/a' is a folder" "$o: said before any work"
	test ! -e "$d/a.state"
	ok $? "$o: no state"
done
run 0 "dry run" pair --scorer judge=./nothing --dry-run
grep -q '^scorers	1$' out
ok $? "a plan, and nothing is run"

tab=$(printf 'a\tb\\c')
run 0 "a name with a tab" "$eval" --db none --system one=a.tar \
    --system "$tab=b.tar" --scorer judge=./judge
is "$(sed -n 2p out | cut -f 2)" 'a\tb\\c' "a field of TSV all the same"

# -------------------------------------------------------------- conditions

run 0 "fail-under, met" pair --scorer judge=./judge \
    --fail-under judge.good:winrate=0.75 --fail-under \
    judge.good:difference=0.6
run 5 "fail-under, win rate" pair --scorer judge=./judge \
    --fail-under judge.good:winrate=0.76
says "win rate of 'two' in 'judge.good' is 0.75, below 0.76" "which, by how much"
tail -n +2 out | sort | cmp -s - body
ok $? "the table is printed all the same"
run 5 "fail-under, difference" pair --scorer judge=./judge \
    --fail-under judge.flat:difference=0.1
run 2 "fail-under, no such column" pair --scorer judge=./judge \
    --fail-under judge.nice:winrate=0.5

# ------------------------------------------------------------- bad scorers

bad_scorer() {	# bad_scorer NAME WORDS COMMAND
	run 1 "$1" pair --scorer "judge=$3"
	says "$2" "$1: said"
	test ! -s out
	ok $? "$1: no result"
}
bad_scorer "missing line" "says nothing of '000000000-0'" "./judge | sed '\$d'"
bad_scorer "extra line" "'000000009-9' is no image of the tar" \
    "./judge; printf '000000009-9\t1\t1\n'"
bad_scorer "a line twice" "'000000000-0' is there twice" \
    "./judge; printf '000000000-0\t1\t1\n'"
bad_scorer "NaN" "'nan', not a finite number" \
    "./judge | sed 's/\t4\t/\tnan\t/'"
bad_scorer "infinity" "'inf', not a finite number" \
    "./judge | sed 's/\t4\t/\tinf\t/'"
bad_scorer "no number" "'4x', not a finite number" \
    "./judge | sed 's/\t4\t/\t4x\t/'"
bad_scorer "a field missing" "has not 3 fields" "./judge | sed 's/\t7\$//;1s/\$/\tflat/;1s/\tflat\tflat/\tflat/'"
bad_scorer "exit status" "scorer 'judge' exited with 3" "./judge; exit 3"
bad_scorer "no such program" "scorer 'judge' exited with 127" "./nothing"
bad_scorer "a signal" "scorer 'judge' was killed by signal 9" 'kill -9 $$'
bad_scorer "no header" "the first line must be 'key'" "./judge | tail -n +2"
bad_scorer "a column twice" "two columns are called 'good'" \
    "./judge | sed 's/flat/good/'"
bad_scorer "nothing at all" "the first line must be 'key'" "true"

bad_scorer "a column without a name" "the name of column 2 is empty" \
    "./judge | sed '1s/good//'"
bad_scorer "a column that is no UTF-8" "the name of column 3 is not UTF-8" \
    "./judge | LC_ALL=C sed '1s/flat/\\xff/'"
run 0 "lines that end as on Windows" pair --scorer \
    "judge=./judge | sed 's/\$/\\r/'"
tail -n +2 out | sort | cmp -s - body
ok $? "the same table"

# A scorer may read as little of the tar as it likes.
run 0 "a scorer that reads nothing" pair --scorer \
    "judge=printf 'key\\ts\\n'; cut -d ' ' -f 2 $d/scores | sort -u |
    sed 's/\$/\\t1/'"
run 0 "two scorers" pair --scorer judge=./judge --scorer again=./judge
test "$(cut -f 1 out | sort | tr '\n' ' ')" = \
    "again.flat again.good judge.flat judge.good scorer "
ok $? "two scorers: all their scores"

# Stopped while a scorer works: status 4, and the scorer is gone too.
cat > slow <<'END'
echo $$ > pid
sleep 600 | cat
END
"$eval" --db none --system one=a.tar --system two=b.tar \
    --scorer "judge=sh ./slow" > out 2> err &
job=$!
i=0
while [ ! -s pid ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done
kill -TERM $job
wait $job
test $? -eq 4
ok $? "SIGTERM during a scorer: exit 4"
i=0
while kill -0 "$(cat pid)" 2> /dev/null && [ $i -lt 300 ]; do
	sleep 0.1
	i=$((i + 1))
done
! kill -0 "$(cat pid)" 2> /dev/null
ok $? "the scorer is stopped too"

# One that has closed its output, and one that does not heed SIGTERM.
slow_one() {			# slow_one TEXT COMMAND
	rm -f pid
	"$eval" --db none --system one=a.tar --system two=b.tar \
	    --scorer "judge=$2" > out 2> err &
	job=$!
	wait_for pid
	began=$(date +%s)
	kill -TERM $job
	wait $job
	is "$?" 4 "SIGTERM, $1: exit 4"
	test $(($(date +%s) - began)) -lt 60
	ok $? "$1: it does not wait for the scorer"
}
slow_one "a scorer without output" "exec >&-; : > pid; exec sleep 120"
slow_one "a scorer that goes on" "trap '' TERM; : > pid; sleep 120"

# Killed while the second scorer looks at the second system: what has been
# scored stays, under the run's name.
cat > twice <<'END'
echo . >> runs
n=$(wc -l < runs)
while [ "$n" -eq 2 ] && [ -e wait ]; do touch now; sleep 0.1; done
./judge
END
touch wait
"$eval" --db none --system one=a.tar --system two=b.tar \
    --scorer "first=echo . >> firsts; ./judge" --scorer "second=sh ./twice" \
    > out 2> err &
wait_for now
kill -9 $!
wait $! 2> /dev/null
rm wait
set -- lpo-eval-*.state
test $# -eq 1 && test -d "$1"
ok $? "killed while a scorer works: there is state"
run 0 "once more" "$eval" --db none --system one=a.tar --system two=b.tar \
    --scorer "first=echo . >> firsts; ./judge" --scorer "second=sh ./twice"
sed -n 's/^first/judge/p' out | sort | cmp -s - body &&
    sed -n 's/^second/judge/p' out | sort | cmp -s - body
ok $? "the same figures"
is "$(wc -l < firsts),$(wc -l < runs)" 2,3 \
    "only the interrupted scorer has run again"
test ! -e "$1"
ok $? "no state is left"

# ----------------------------------------------------- models, interrupted

if [ ! -d "$model/unet" ]; then
	skip "no demo/model"
else
	"$bin/demo-world" prompts -n 4 --seed 3 --split tune -o p.csv
	cat > model_eval <<-EOF
	#!/bin/sh
	where=\$1
	shift
	exec "$eval" --db none -m "$model" --system one="$model" \
	    --system two="$model" -p p.csv --per-prompt 6 --steps 4 \
	    --scorer size=./size --html "\$where/r.html" "\$@"
	EOF
	cat > size <<-'EOF'
	#!/bin/sh
	tar -tvf - | awk 'BEGIN { print "key\tbytes" }
	    /png$/ { sub(/.png$/, "", $6); print $6 "\t" $3 }'
	EOF
	chmod +x model_eval size
	mkdir whole parts
	run 0 "two models" ./model_eval whole
	cp out want
	awk -F '\t' 'NR == 2 && $4 == 4 && $5 == 24 && $8 == 0 && $11 == 0.5 {
		good = 1 } END { exit !good }' out
	ok $? "a model is as good as itself"
	test "$(grep -o 'data:image/png;base64,' whole/r.html | wc -l)" -ge 48
	ok $? "the report has its pictures"
	# Killed wherever it stands, a part each few pictures.
	for i in 1 2 3; do
		./model_eval parts --batch 2 --checkpoint 0 > /dev/null 2>&1 &
		job=$!
		wait_for "$(printf 'parts/r.html.state/system-0.tar.%09d' \
		    $((2 * i)))"
		kill -9 $job
		wait $job 2> /dev/null
	done
	find parts/r.html.state -name 'system-*.tar*' | grep -q .
	ok $? "killed three times, parts are there"
	run 0 "once more" ./model_eval parts --batch 3
	same want out "the same table"
	same whole/r.html parts/r.html "and the same report"
	test ! -e parts/r.html.state
	ok $? "and no state"
fi

# ----------------------------------------------------- systems that disagree

cp -r a other && echo '{"prompt":"another"}' > other/000000001-0.json
tar_of other
run 1 "another prompt" "$eval" --db none --system one=a.tar \
    --system two=other.tar --scorer judge=./judge
says "'000000001-0' has another prompt" "which image"
rm -r other && cp -r a other && rm other/000000002-1.*
tar_of other
run 1 "fewer images" "$eval" --db none --system one=a.tar \
    --system two=other.tar --scorer judge=./judge
says "'a.tar' 6" "how many"
rm -r other && cp -r a other && echo '{"caption":"prompt 1"}' \
    > other/000000001-0.json
tar_of other
run 1 "a tar without a prompt" "$eval" --db none --system one=a.tar \
    --system two=other.tar --scorer judge=./judge
says "other.tar: image '000000001-0' has no 'prompt'" "which image"
run 1 "the first tar without it" "$eval" --db none --system one=other.tar \
    --system two=a.tar --scorer judge=./judge
says "other.tar: image '000000001-0' has no 'prompt'" "likewise"

mkdir latin dots
cp a/000000000-0.png latin/1.png
printf 'caf\351\n' > latin/1.txt
run 1 "a prompt that is no UTF-8" "$eval" --db none --system one=latin \
    --system two=latin --scorer judge=true
says "latin/1.txt: not UTF-8" "which file"
printf '\357\273\277prompt\r\n' > latin/1.txt
cp -r latin plain
echo prompt > plain/1.txt
cp latin/1.png plain/._1.png
one="judge=printf 'key\\tx\\n1\\t1\\n'"
run 0 "Windows' text, a file that is hidden" "$eval" --db none \
    --system one=latin --system two=plain --scorer "$one"
cp latin/1.png dots/a.1.png
run 1 "a name with two dots" "$eval" --db none --system one=dots \
    --system two=dots --scorer judge=true
says "'dots/a.1.png': a picture's name has one dot" "which file"
head -c 3000 a.tar > cut.tar
run 1 "a cut tar" "$eval" --db none --system one=a.tar \
    --system two=cut.tar --scorer judge=./judge
says cut.tar "the file is named"
tar --format=ustar -cf empty.tar -T /dev/null
run 1 "no images" "$eval" --db none --system one=empty.tar \
    --system two=empty.tar --scorer judge=./judge

# --------------------------------------------------------- existing images

cat > world/some.csv <<'END'
id,prompt,image_0,image_1
first,a cat,a0.png,a1.png
"sec,ond",a dog,b0.png,b1.png
,a cow,c0.png,c1.png
END
i=0
for f in $(images); do
	case $i in 0) t=a0 ;; 1) t=a1 ;; 2) t=b0 ;; 3) t=b1 ;; 4) t=c0 ;;
	*) t=c1 ;; esac
	cp "$f" world/$t.png
	i=$((i + 1))
done
# 10 x row + side, and its square
cat > sides <<'END'
#!/bin/sh
tar -tf - | awk 'BEGIN { print "key\tv\tw" } /\.png$/ {
	sub(/\.png$/, ""); split($1, p, "-"); v = 10 * p[1] + p[2]
	print $1 "\t" v "\t" v * v }'
END
chmod +x sides
run 0 "--images" "$eval" --images world/some.csv --scorer s=./sides
cat > want <<'END'
id,s.v_0,s.v_1,s.w_0,s.w_1
first,0,1,0,1
"sec,ond",10,11,100,121
2,20,21,400,441
END
same want out "id, and the scores of both images"
cp want images.want
run 0 "--images, one score" "$eval" --images world/some.csv \
    --scorer "aesthetic=./sides | cut -f 1,2" -o scores.csv
test "$(head -1 scores.csv)" = id,aesthetic_0,aesthetic_1
ok $? "a single score has the scorer's name, as filters want it"
run 0 "--images, json" "$eval" --images world/some.csv --json \
    --scorer "aesthetic=./sides | cut -f 1,2"
head -2 out | tail -1 > line
test "$(sqlite3 :memory: "select x ->> 'aesthetic_0' = 10,
    x ->> 'aesthetic_1' = 11, x ->> 'id' from (select readfile('line') x)")" = \
    '1|1|sec,ond'
ok $? "an object a line"
run 0 "--images, twice" "$eval" --images world/some.csv \
    --images world/some.csv --scorer s=./sides --json
is "$(wc -l < out)" 6 "the rows of both"
run 0 "--images, and an operand" "$eval" --images world/some.csv \
    world/some.csv --scorer s=./sides --json
is "$(wc -l < out)" 6 "the rows of both"
run 1 "--images, a file that is missing" "$eval" --images \
    world/prefs.missing.csv --scorer s=./sides
rm world/b1.png
run 3 "--images, an image that is missing" "$eval" --images world/some.csv \
    --scorer s=./sides
says "row 1: 'world/b1.png'" "which image"
{ sed -n 1,2p images.want; sed -n 4p images.want; } > left
same left out "the other rows"

# What --images prints is what lpo-pairs joins: moments by hand, [8, 1, 1].
latent_model m
mkdir enc
encoded enc 0 first 0 p
encoded enc 1 sec,ond 1 p
encoded enc 2 2 1 p
sed 's/"id":"2",//' enc/000000002.json > x && mv x enc/000000002.json
tar_of enc
pairs=$bin/lpo-pairs
run 0 "joined by lpo-pairs" "$pairs" -m m --db none --scores scores.csv \
    --where 'aesthetic_1 > 10' --stats enc.tar
grep -q '^filter	where	3	2$' out
ok $? "--where sees the scores"
run 0 "the filter sees them" "$pairs" -m m --db none --scores scores.csv \
    --filter mpcf1 --mpcf-use aesthetic --stats enc.tar
grep -q '^filter	mpcf1	3	2$' out
ok $? "one pair prefers the image that scores less"

# ------------------------------------------------------------------- pooled

# A second run: other pictures of prompts 0 and 1, and a new prompt.
mkdir c e
for k in 000000000-0 000000000-1 000000001-0; do
	for s in c e; do
		cp a/000000000-0.png $s/$k.png
		echo '{"prompt":"prompt 0"}' > $s/$k.json
		test $k = 000000001-0 && echo '{"prompt":"prompt 9"}' \
		    > $s/$k.json
	done
done
: > c/A
: > e/B
tar_of c
tar_of e
cat > scores2 <<'END'
A 000000000-0 0
A 000000000-1 0
A 000000001-0 0
B 000000000-0 1
B 000000000-1 -3
B 000000001-0 4
END
rm x.db
run 0 "first run" pair --scorer judge=./judge
SCORES=$d/scores2 run 0 "second run" "$eval" --db y.db --system one=c.tar \
    --system two=e.tar --scorer judge=./judge
run 3 "a table's images, in the same database" "$eval" --db y.db \
    --images world/some.csv --scorer s=./sides
run 0 "pooled" "$eval" --pool x.db y.db
# prompt 0: (1 + 0 + 1 - 3) / 4 = -.25, wins (1 + .5 + 1 + 0) / 4 = .625;
# prompt 1: 0, .5; prompt 2: 1.5, 1; prompt 9: 4, 1; with 4, 2, 2 and 1
# pictures: (-1 + 0 + 3 + 4) / 9 and (2.5 + 1 + 2 + 1) / 9
awk -F '\t' -v OFS='\t' '$1 == "judge.good" {
	print $2, $3, $4, $5, $6, $7, $8, $11 }' out > is
printf 'two\tone\t4\t9\t0.722222\t1.38889\t0.666667\t0.722222\n' > want
same want is "images of a prompt together, runs beside each other"
run 0 "pooled, one run" "$eval" --pool x.db
tail -n +2 out | sort > is
same body is "one run pooled is that run"
cp x.db copy.db
run 1 "a copy of a database" "$eval" --pool x.db y.db copy.db
says "'copy.db' has run" "it does not count twice"
run 5 "pooled, condition" "$eval" --pool x.db y.db \
    --fail-under judge.good:winrate=0.8
run 0 "other scorer" "$eval" --db z.db --system one=c.tar \
    --system two=e.tar --scorer other=./judge
run 1 "pooled with other scores" "$eval" --pool x.db z.db
says z.db "which database"
run 1 "not a database" "$eval" --pool want
run 1 "no such database" "$eval" --pool nothing.db
sqlite3 empty.db 'create table t (x)'
run 1 "another program's database" "$eval" --pool empty.db

# -------------------------------------------------------------------- usage

usage() {	# usage NAME OPTION...
	name=$1
	shift
	run 2 "$name" "$eval" --db none "$@"
	test "$(wc -l < err)" -eq 1
	ok $? "$name: one line"
}
s="--system one=a.tar --system two=b.tar"
# shellcheck disable=SC2086  # $s is a list of options
{
usage "nothing"
usage "no scorer" $s
usage "one system" --system one=a.tar --scorer j=./judge
usage "a system without a name" --system a.tar --system b=b.tar --scorer j=x
usage "a system twice" --system a=a.tar --system a=b.tar --scorer j=x
usage "a scorer without a command" $s --scorer judge
usage "a scorer's name with a dot" $s --scorer a.b=./judge
usage "a scorer twice" $s --scorer j=./judge --scorer j=./judge
usage "bad condition" $s --scorer j=./judge --fail-under j.good
usage "condition of what" $s --scorer j=./judge --fail-under j.good:mean=1
usage "condition of nobody" $s --scorer j=./judge --fail-under k.x:winrate=1
usage "lora and system" $s --lora x.safetensors --scorer j=./judge
usage "lora without a model" --lora x.safetensors -p p.txt --scorer j=./judge
usage "a model without prompts" --system a=sd15 --system b=b.tar --scorer j=x
usage "an operand" $s --scorer j=./judge a.tar
usage "pool of nothing" --pool
usage "pool and images" --pool --images world/some.csv --scorer j=x
usage "images and a report" --images world/some.csv --scorer j=x --html r.html
usage "table and report in one file" $s --scorer j=./judge --html r -o r
usage "both to standard output" $s --scorer j=./judge --html -
usage "an output without a name" $s --scorer j=./judge -o ""
usage "a title that is no UTF-8" $s --scorer j=./judge --title "$(
    printf 'a\377')"
usage "--lora twice" -m m --lora a --lora b -p p.txt --scorer j=./judge
usage "unknown option" --nonsense
usage "a number that is none" $s --scorer j=./judge --resamples many
}

done_testing
