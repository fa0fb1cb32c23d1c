#!/bin/sh
# The questions of lpo-db(5), asked of the database that a small experiment
# left: every one has an answer.
set -u
. tests/cli/lib.sh
if ! command -v sqlite3 > /dev/null; then
	echo "1..0 # SKIP no sqlite3"
	exit 0
fi

page=$PWD/man/lpo-db.5
world 60
"$bin/demo-world" prompts -n 4 --seed 3 --split train -o "$dir/prompts.csv"
sed -i '5s/.*/000003,no pictures here,,,1,0,0,0,0,1/' "$dir/world/prefs.csv"
cd "$dir" || exit 1
run() {
	tool=$1
	shift
	"$bin/$tool" -q --db lpo.db --precision f32 "$@" >> out 2>> err
}

run lpo-encode -m "$model" world/prefs.csv -o enc.tar
is $? 3 "preferences, one row of them bad"
run lpo-pairs -o pairs.tar enc.tar && run lpo-pairs --seed 9 -o held.tar enc.tar
ok $? "pairs"
run lpo-lrm -m "$model" --steps 3 --batch 8 --lr 1e-3 --eval held.tar \
    -o lrm pairs.tar
ok $? "a reward model"
run lpo-train -m "$model" -r lrm -p prompts.csv --iterations 2 \
    --prompts-per-iteration 2 --batch 6 --steps 4 --lr 1e-3 \
    --threshold quantile:0.5 --save-every 1 -o aligned.safetensors
ok $? "a LoRA"
run lpo-eval -m "$model" --lora aligned.safetensors -p prompts.csv --steps 4 \
    --resamples 200 --scorer judge="$bin/judge"
ok $? "a comparison"

first=$(sqlite3 lpo.db "select run from run where tool = 'lpo-pairs'
    order by id limit 1")
second=$(sqlite3 lpo.db "select run from run where tool = 'lpo-pairs'
    order by id desc limit 1")
train=$(sqlite3 lpo.db "select run from run where tool = 'lpo-train'")
sed -n 's/^\.Dl \(sqlite3.*\)/\1/p' "$page" |
    sed "s/0123456789abcdef/$first/; s/fedcba9876543210/$second/
	s/89abcdef01234567/$train/; s/| less\$//" > questions
n_questions=$(wc -l < questions | tr -d ' ')
test "$n_questions" -ge 10
ok $? "$n_questions questions"
while read -r q; do
	sh -c "$q" > answer 2> err && test -s answer
	ok $? "$(echo "$q" | sed 's/.*lpo\.db .//' | cut -c 1-60) ..."
done < questions

# Some answers are known.
is "$(sqlite3 lpo.db "select argv like '%lpo-train %--iterations 2%' from made
    where path like '%aligned.safetensors'")" 1 "the command of the LoRA"
is "$(sqlite3 lpo.db "select name || a.value || ' ' || b.value from option a
    join option b using (name) where a.run = '$first' and b.run = '$second'
    and a.value is not b.value")" "seed42 9" "runs that differ in the seed"
is "$(sqlite3 lpo.db "select count(*) from curve where tool = 'lpo-lrm'
    and name = 'loss'")" 3 "three steps, three losses"
is "$(sqlite3 lpo.db "select count(*), sum(n_images) from prompt_change
    where scorer = 'judge.alignment'")" "4|4" "four prompts changed or not"
is "$(sqlite3 lpo.db "select abs(avg(change) - (select difference from result
    where scorer = 'judge.aesthetic')) < 1e-9 from prompt_change
    where scorer = 'judge.aesthetic'")" 1 \
    "the prompts' changes add up to the difference"
# ------------------------------------------------- several at the same time

# Who writes to a database waits for another that does.
mkfifo hold
sqlite3 held.db 'create table t (x); drop table t; pragma journal_mode = wal' \
    > out 2> err
sqlite3 -batch held.db < hold > out 2> err &
holder=$!
exec 3> hold
echo "begin exclusive; select 'mine';" >&3
i=0
while [ ! -s out ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
"$bin/lpo-pairs" -q --db held.db -o waits.tar enc.tar 2> err &
waits=$!
sleep 1
kill -0 $waits 2> /dev/null && [ ! -e waits.tar ]
ok $? "a database that another writes to is waited for"
echo 'rollback;' >&3
exec 3>&-
wait $holder
wait $waits
is $? 0 "and written to after that"
same waits.tar pairs.tar "the same bytes"
is "$(sqlite3 held.db "select group_concat(status) from run")" "done" "its row"

# Eight that make a database at once: one run, eight attempts at it.
i=0
pids=
while [ $i -lt 8 ]; do
	"$bin/lpo-pairs" -q --db race.db -o race$i.tar enc.tar 2>> err &
	pids="$pids $!"
	i=$((i + 1))
done
bad=0
for p in $pids; do
	wait "$p" || bad=$((bad + 1))
done
is $bad 0 "eight processes make one database"
is "$(sqlite3 race.db "select count(*), (select count(*) from attempt where
    exit_status = 0) from run where status = 'done'")" "1|8" "a row of each"
for i in 0 1 2 3 4 5 6 7; do
	cmp race$i.tar pairs.tar || bad=1
done
is $bad 0 "all with the same bytes"
done_testing
