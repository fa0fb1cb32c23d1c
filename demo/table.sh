#!/bin/sh
# lpo-eval's TSV as a table for people.  usage: table.sh RESULT.tsv
exec awk -F '\t' '
NR == 1 {
	printf "\n%-18s %8s %8s   %-26s %s\n", "", "base", "aligned",
	    "difference", "win rate"
	next
}
{
	printf "%-18s %8.3f %8.3f   %+.3f [%+.3f, %+.3f]   " \
	    "%.1f %% [%.1f, %.1f]\n", $1, $6, $7, $8, $9, $10, 100 * $11,
	    100 * $12, 100 * $13
}' "$1"
