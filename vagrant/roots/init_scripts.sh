#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs once in the new root file system of guests whose init is sysvinit's or OpenRC's. Services stay as Debian ships them.
set -eu

echo root:rig | chpasswd
useradd --system --home-dir /var/lib/rig-counter --create-home rig
echo "keepalive_requests 1000000;" >/etc/nginx/conf.d/rig.conf

# It counts in memory and on disk: what is lost between the two shows.
cat >/etc/init.d/rig-counter <<'SCRIPT'
#!/bin/sh
### BEGIN INIT INFO
# Provides:          rig-counter
# Required-Start:    $local_fs
# Required-Stop:     $local_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: Counter of the two-host rig
### END INIT INFO
case $1 in
start)
    start-stop-daemon --start --background --make-pidfile --pidfile /run/rig-counter.pid --chuid rig \
        --exec /bin/sh -- /usr/local/lib/counter.sh /var/lib/rig-counter
    ;;
stop) start-stop-daemon --stop --pidfile /run/rig-counter.pid --remove-pidfile --oknodo ;;
esac
SCRIPT
chmod 755 /etc/init.d/rig-counter
update-rc.d rig-counter defaults

# Terminals are the container's, and it is told to stop by SIGPWR, as LXC does unless told otherwise.
if [ -x /sbin/openrc-init ]; then
    for terminal in console tty1 tty2 tty3 tty4; do
        ln -s agetty "/etc/init.d/agetty.$terminal"
        rc-update add "agetty.$terminal" default
    done
else
    sed -i '/:respawn:.*getty/d; /^pf:/d' /etc/inittab
    {
        echo "c:2345:respawn:/sbin/getty 38400 console"
        for number in 1 2 3 4; do echo "$number:2345:respawn:/sbin/getty 38400 tty$number"; done
        echo "pf::powerfail:/sbin/shutdown -t1 -h now"
    } >>/etc/inittab
fi
