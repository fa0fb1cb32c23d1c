#!/bin/sh
# One test, its TAP shown to prove and kept; its exit status is its verdict.
log=${tap:?}/$(echo "$1" | tr / _)
case $1 in
tests/cli/*) sh "$1" > "$log" ;;
*) "./$1" > "$log" ;;
esac
status=$?
cat "$log"
exit $status
