# The entries of the lock, hashes and all, for the packages of a list: awk -f of-lock.awk wanted.txt requirements.lock
function name(line) { sub(/[^A-Za-z0-9._-].*/, "", line); sub(/[=<>!~;].*/, "", line); return tolower(line) }
NR == FNR { if (/^[A-Za-z0-9]/) wanted[name($0)] = 1; next }
/^[A-Za-z0-9]/ { keep = name($0) in wanted }
keep
