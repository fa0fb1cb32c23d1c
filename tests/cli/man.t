#!/bin/sh
# Manual pages: lint, sections, options as --help has them, the schema.
set -u
. tests/cli/lib.sh

# "s size" or "- images-only", a line an option, in the page's order.
of_page() {
	sed -n 's/^\.It Fl \([a-zA-Z]\) , Fl -\([a-z0-9-]*\).*/\1 \2/p
	    s/^\.It Fl -\([a-z0-9-]*\).*/- \1/p' "$1"
}
of_help() {
	sed -n 's/^  -\([a-zA-Z]\), --\([a-z0-9-]*\).*/\1 \2/p
	    s/^      --\([a-z0-9-]*\).*/- \1/p'
}
own() { sed '/^common options:/,$d' "$1" | of_help; }
common() { sed -n '/^common options:/,$p' "$1" | of_help; }

if command -v mandoc > /dev/null; then
	for p in man/*.[157]; do
		mandoc -T lint -W warning "$p" > "$dir/err" 2>&1
		ok $? "$p: lint"
	done
else
	skip "no mandoc"
fi

tools=$(for f in tools/lpo-*.c; do basename "$f" .c; done)
for f in man/*.1; do basename "$f" .1; done > "$dir/err"
test "$(cat "$dir/err")" = "$tools"
ok $? "a page for each program"
of_page man/lpo.7 > "$dir/common.page"
sort -k 2 "$dir/common.page" > "$dir/lpo.7"
for t in $tools; do
	grep -q "^\.It Xr $t 1\$" man/lpo.7
	ok $? "lpo(7) has a line for $t"
	"$bin/$t" --help > "$dir/help"
	# A common option that means more to a program stands in its page too.
	of_page "man/$t.1" | grep -vxF -f "$dir/common.page" > "$dir/page"
	own "$dir/help" | sort -k 2 > "$dir/own"
	sort -k 2 "$dir/page" | diff "$dir/own" - > "$dir/err"
	ok $? "$t: page and --help have the same options and letters"
	common "$dir/help" | sort -k 2 | diff "$dir/lpo.7" - > "$dir/err"
	ok $? "$t: lpo(7) and --help have the same common options"
	of_page "man/$t.1" | cut -d ' ' -f 2 | LC_ALL=C sort -c 2> "$dir/err"
	ok $? "$t: options are in alphabetical order"
	sed -n '/^\.Sh EXAMPLES/,/^\.Sh SEE ALSO/p' "man/$t.1" > "$dir/ex"
	test "$(grep -c '^\.Bd\|^\.Dl' "$dir/ex")" -ge 2
	ok $? "$t: two examples"
	sed '/^\.Ed/q; /^\.Dl/q' "$dir/ex" | grep -q '|'
	ok $? "$t: the first example is a pipe"
done
cut -d ' ' -f 2 "$dir/common.page" | LC_ALL=C sort -c 2> "$dir/err"
ok $? "lpo(7): options are in alphabetical order"

order="NAME SYNOPSIS DESCRIPTION ENVIRONMENT FILES EXIT_STATUS EXAMPLES SEE_ALSO CAVEATS"
for p in man/*.[157]; do
	sh=$(sed -n 's/^\.Sh //p' "$p" | tr ' ' '_' | tr '\n' ' ')
	left=" $order "
	good=0
	for s in $sh; do
		case $left in
		*" $s "*) left=" ${left#*" $s "}" ;;
		*) good=1 ;;
		esac
	done
	test $good -eq 0
	ok $? "$p: sections and their order"
	case " $sh" in
	*" EXIT_STATUS EXAMPLES "*) : ;;
	*) false ;;
	esac
	ok $? "$p: EXIT STATUS and EXAMPLES"
done
for t in $tools; do
	sed -n '/^\.Sh EXIT STATUS/,/^\.Sh EXAMPLES/p' "man/$t.1" |
	    sed -n 's/^\.It \([0-9]*\)$/\1/p' | tr '\n' ' ' > "$dir/err"
	grep -q '^0 1 2 ' "$dir/err"
	ok $? "$t: exit statuses by number"
done

# Every table, view and column of the schema stands in lpo-db(5); its queries
# are tried on a real database by db.t.
tr -c 'a-z0-9_' '\n' < man/lpo-db.5 | sort -u > "$dir/words"
cat schemas/*.sql | sqlite3 "$dir/x.db"
for table in $(sqlite3 "$dir/x.db" "select name from sqlite_schema
    where type in ('table', 'view') and name not like 'sqlite%'"); do
	grep -q "^\.It Sy $table\$" man/lpo-db.5
	ok $? "lpo-db(5) has $table"
	test "$table" = file_hash && continue
	sqlite3 "$dir/x.db" "select name from pragma_table_info('$table')" |
	    grep -vxF -f "$dir/words" > "$dir/err"
	test ! -s "$dir/err"
	ok $? "lpo-db(5) has the columns of $table"
done

done_testing
