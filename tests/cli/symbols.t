#!/bin/sh
# The library never prints, never exits, and takes no name but lpo_...
set -u
. tests/cli/lib.sh
lib=${BUILD:-build}/liblpo.a

nm -A --undefined-only "$lib" > "$dir/used" 2> "$dir/err"
ok $? "nm reads $lib"
nm -A --defined-only --extern-only "$lib" > "$dir/own" 2>> "$dir/err"
test -s "$dir/used" && test -s "$dir/own"
ok $? "it has objects"

# Our objects only: the archive has no others, but names of the C library end
# in _chk where the compiler hardens them, and in _unlocked under -O2.
none() {	# none TEXT NAME...
	what=$1
	shift
	for name in "$@"; do
		grep -E " U (__)?$name(_chk|_unlocked)?(@.*)?\$" "$dir/used"
	done > "$dir/err"
	test ! -s "$dir/err"
	ok $? "$what"
}
grep -qE ' U (__)?vsnprintf(_chk)?$' "$dir/used"
ok $? "what is used is seen"
none "nothing exits" exit _Exit quick_exit abort atexit
none "nothing prints" printf vprintf puts putchar fprintf vfprintf fputs \
    fputc putc perror psignal dprintf err errx verr warn warnx vwarn error
none "nobody knows the standard streams" stdout stderr stdin
none "no state hidden in the C library" rand srand random drand48 strtok \
    setlocale setenv putenv

# _exit is for the child between fork and exec, nowhere else.
grep -E ' U _exit$' "$dir/used" | grep -v '/\?external\.o:' > "$dir/err"
test ! -s "$dir/err"
ok $? "_exit only where a scorer is started"

# Sanitizers export marks of their own, in their own name space.
sed 's/.* [A-Za-z] //' "$dir/own" | grep -v '^lpo_' |
    grep -v '^__\(odr_\)\?\(asan\|ubsan\|sanitizer\)' | sort -u > "$dir/err"
test ! -s "$dir/err"
ok $? "every exported name begins with lpo_"

# Nothing of ours can be changed from outside: no exported variables but
# constants and tables (R, and V or D for tables of addresses).
sed -n 's/.* [BCS] //p' "$dir/own" | grep -v '^__odr_' | sort -u > "$dir/err"
test ! -s "$dir/err"
ok $? "no exported variables"

done_testing
