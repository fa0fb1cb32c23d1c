#!/bin/sh
# coverage.sh BUILD: lines of lib/ that ran under BUILD's tests, by gcov: a
# line for each file, each folder, and all.  Status 1 below the marks: 90 % of
# lib/io, 80 % of lib.
set -u
build=$1
find "$build/lib" -name '*.gcno' | sort | while read -r notes; do
	gcov -n "$notes" 2> /dev/null
done | awk '
	# "File '\''lib/io/table.c'\''", then "Lines executed:93.45% of 321"
	/^File / {
		file = substr($2, 2, length($2) - 2)
		next
	}
	/^Lines executed:/ && file ~ /^lib\/.*\.c$/ && !(file in lines) {
		split($2, part, /[:%]/)
		lines[file] = $4
		ran[file] = int(part[2] * $4 / 100 + 0.5)
		file = ""
	}
	END {
		for (f in lines) {
			split(f, path, "/")
			d = "lib/" path[2] "/"
			dl[d] += lines[f]; dr[d] += ran[f]
			al += lines[f]; ar += ran[f]
			printf "%s\t%d\t%d\t%.1f\n", f, lines[f], ran[f],
			    100 * ran[f] / lines[f] | "sort"
		}
		close("sort")
		for (d in dl)
			printf "%s\t%d\t%d\t%.1f\n", d, dl[d], dr[d],
			    100 * dr[d] / dl[d] | "sort"
		close("sort")
		if (al == 0) {
			print "no coverage was recorded" > "/dev/stderr"
			exit 1
		}
		printf "lib/\t%d\t%d\t%.1f\n", al, ar, 100 * ar / al
		exit 100 * dr["lib/io/"] < 90 * dl["lib/io/"] ||
		    100 * ar < 80 * al
	}'
