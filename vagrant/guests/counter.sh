#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The init of a tick guest: counts in memory and writes the count to the disk twenty times a second. Before each step it reads back what
# it wrote in the step before: memory and disk that are not of one instant show as an error.
#
#   counter.sh [DIRECTORY [USER]]    with a user, a second counter runs as that user, in DIRECTORY/user
directory=${1:-/}
cd "$directory" || exit 1
trap 'exit 0' TERM
[ -z "${2:-}" ] || su -s /bin/sh "$2" -c "exec sh $0 ${directory%/}/user" &
read -r start </proc/sys/kernel/random/uuid
echo "$start" >>starts
count=0 errors=0 seen=
while :; do
    if [ "$count" -gt 0 ]; then
        read -r seen <count
        [ "$seen" = "$start $count $errors" ] || errors=$((errors + 1))
    fi
    count=$((count + 1))
    echo "$count" >>log
    echo "$start $count $errors" >count
    sleep 0.05
done
