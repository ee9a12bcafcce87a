#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# The init of a talk guest: counts like counter.sh, but slower, holds pages that it verifies when a file `verify` asks for it (the answer
# is `verified`, as of memory.py), and answers clients at port 7.
#
#   talk.sh            the init
#   talk.sh answer     one client: each line comes back with its number and a word that only this process knows
#
# A disk that is full is waited for, as its owner would: what was not written is written later.
cd / || exit 1
if [ "${1:-}" = answer ]; then
    read -r word </proc/sys/kernel/random/uuid
    number=0
    while read -r line; do
        number=$((number + 1))
        echo "$line $number $word"
    done
    exit 0
fi

write() { # FILE LINE: until it is there
    until echo "$2" >"$1"; do sleep 1; done 2>/dev/null
}

trap 'exit 0' TERM
nc -ll -p 7 -e /bin/sh /talk.sh answer &
read -r start </proc/sys/kernel/random/uuid
echo "$start" >>starts
pages=$(head -c 196608 /dev/urandom | base64)
sum=$(echo "$pages" | md5sum)
count=0 errors=0 seen=
while :; do
    if [ "$count" -gt 0 ]; then
        read -r seen <count
        [ "$seen" = "$start $count $errors" ] || errors=$((errors + 1))
    fi
    count=$((count + 1))
    until echo "$count" >>log; do sleep 1; done 2>/dev/null
    write count "$start $count $errors"
    if [ -e verify ]; then
        read -r word <verify # it ends without a newline: that is no error of ours
        rm verify
        bad=0
        [ "$(echo "$pages" | md5sum)" = "$sum" ] || bad=1
        write verified.new "{\"word\": \"$word\", \"pages\": $((${#pages} / 4096)), \"bad\": $bad, \"rolling_bad\": 0}"
        mv verified.new verified
    fi
    sleep 0.3
done
