#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs once in the new root file system of guests that are one application with tini as init, or services of runit's.
set -eu

if [ -d /etc/nginx ]; then
    echo "daemon off;" >>/etc/nginx/nginx.conf
    echo "keepalive_requests 1000000;" >/etc/nginx/conf.d/rig.conf
fi

# It counts in memory and on disk beside the application: what is lost between the two shows.
mkdir /var/lib/rig-counter
cat >/usr/local/lib/application.sh <<'SCRIPT'
#!/bin/sh
sh /usr/local/lib/counter.sh /var/lib/rig-counter &
exec "$@"
SCRIPT
if [ -x /usr/bin/runsvdir ]; then
    mkdir /etc/service/rig-counter
    printf '#!/bin/sh\nexec sh /usr/local/lib/counter.sh /var/lib/rig-counter\n' >/etc/service/rig-counter/run
    chmod 755 /etc/service/rig-counter/run
fi
