#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Sets a host of the two-host rig up. One script for both rigs: vagrant/rig calls single phases of it while it builds and
# starts its namespaces, the Vagrantfile calls `provision.sh all` in a real virtual machine.
#
#   provision.sh list                     print the packages a host needs
#   provision.sh packages                 install them
#   provision.sh lxc                      LXC's defaults: /pool as LXC path, lxcbr0, subordinate ids for root
#   provision.sh ssh                      an sshd for tests: keys only, one fast host key type
#   provision.sh venv [REQUIREMENT...]    the virtual environment for migrator, with these run-time dependencies in it
#   provision.sh bridge ADDRESS/LEN [MAC] make lxcbr0; the network card with that MAC becomes its uplink
#   provision.sh bridge_at_boot ...       the same, now and at every boot
#   provision.sh pool [SIZE]              btrfs on a sparse file, mounted at /pool, now and at every boot
#   provision.sh keys                     root's key and who may enter, from $RIG_KEY (a private key)
#   provision.sh migrator DIRECTORY       install migrator from this working tree, without its dependencies
#   provision.sh all ADDRESS/LEN MAC DIRECTORY          everything, for a real virtual machine
#
# Each phase is safe to repeat.
set -eu

VENV=/opt/migrator/venv
BRIDGE="forward_delay 0 stp_state 0 mcast_snooping 0"

list() {
    # python3-lxc is not on PyPI, so the virtual environment sees the system's packages.
    cat <<PACKAGES
btrfs-progs
busybox-static
ca-certificates
criu
iperf3
iproute2
iptables
iputils-arping
iputils-ping
kmod
lxc
nftables
openssh-client
openssh-server
procps
python3
python3-lxc
python3-venv
tcpdump
uidmap
wireguard-go
wireguard-tools
PACKAGES
}

packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # Where the kernel has AppArmor, containers do not start without its programs.
    apparmor=
    if grep -qs Y /sys/module/apparmor/parameters/enabled; then apparmor=apparmor; fi
    # shellcheck disable=SC2046,SC2086  # one word a package, or none
    apt-get install -q -y --no-install-recommends $(list) $apparmor
}

lxc() {
    mkdir -p /pool /etc/lxc /var/log/lxc
    echo "lxc.lxcpath = /pool" >/etc/lxc/lxc.conf
    cat >/etc/lxc/default.conf <<CONFIG
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up
lxc.console.path = none
lxc.tty.max = 0
CONFIG
    # lxcbr0 is made by `bridge`, without the DHCP server that lxc-net would start.
    mkdir -p /etc/default
    echo "USE_LXC_BRIDGE=false" >/etc/default/lxc-net
    for file in /etc/subuid /etc/subgid; do
        grep -qs '^root:' $file || echo "root:100000:65536" >>$file
    done
}

ssh() {
    mkdir -p /etc/ssh/sshd_config.d /root/.ssh
    chmod 700 /root/.ssh
    cat >/etc/ssh/sshd_config.d/migrator-rig.conf <<CONFIG
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
UsePAM no
PrintMotd no
MaxStartups 100
MaxSessions 100
CONFIG
    rm -f /etc/ssh/ssh_host_rsa_key* /etc/ssh/ssh_host_ecdsa_key*
}

venv() {
    [ -x $VENV/bin/python ] || python3 -m venv --system-site-packages $VENV
    $VENV/bin/python -m pip install -q --no-cache-dir setuptools wheel "$@"
    ln -sf $VENV/bin/migrator /usr/local/bin/migrator
}

# Print the name of the network card with this MAC. The bridge itself carries its uplink's MAC, but is no device.
card() {
    for interface in /sys/class/net/*; do
        if [ -e "$interface/device" ] && [ "$(tr -d : <"$interface/address")" = "$(echo "$1" | tr -d : | tr A-F a-f)" ]; then
            basename "$interface"
            return
        fi
    done
    echo "provision.sh: no network card has the MAC $1" >&2
    exit 1
}

bridge() {
    address=$1 mac=${2:-}
    if [ ! -e /sys/class/net/lxcbr0 ]; then
        # shellcheck disable=SC2086  # several words
        ip link add lxcbr0 type bridge $BRIDGE
    fi
    if [ -n "$mac" ]; then
        port=$(card "$mac")
        ip address flush dev "$port"
        ip link set dev "$port" master lxcbr0 up
    fi
    ip address replace "$address" dev lxcbr0
    ip link set dev lxcbr0 up
}

bridge_at_boot() {
    install -m 755 "$0" /usr/local/sbin/migrator-provision
    cat >/etc/systemd/system/migrator-bridge.service <<UNIT
[Unit]
Description=lxcbr0 for migrator's two-host rig
After=network.target networking.service systemd-networkd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/migrator-provision bridge $*

[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload
    systemctl enable -q migrator-bridge.service
    systemctl restart migrator-bridge.service
}

pool() {
    size=${1:-8G} image=/var/lib/migrator-pool.img
    mkdir -p /pool
    if [ ! -e $image ]; then
        rm -f $image.new
        truncate -s "$size" $image.new
        mkfs.btrfs -q $image.new
        mv $image.new $image
    fi
    grep -qs " /pool btrfs " /etc/fstab || echo "$image /pool btrfs loop,noatime 0 0" >>/etc/fstab
    mountpoint -q /pool || mount /pool
}

keys() {
    umask 077
    echo "$RIG_KEY" >/root/.ssh/id_ed25519
    ssh-keygen -y -f /root/.ssh/id_ed25519 >/root/.ssh/id_ed25519.pub
    grep -qsxFf /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys ||
        cat /root/.ssh/id_ed25519.pub >>/root/.ssh/authorized_keys
}

migrator() {
    $VENV/bin/python -m pip install -q --no-cache-dir --force-reinstall --no-deps --no-build-isolation --no-index "$1"
}

all() {
    address=$1 mac=$2 tree=$3
    packages
    lxc
    ssh
    [ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
    systemctl restart ssh
    [ -z "${RIG_KEY:-}" ] || keys
    bridge_at_boot "$address" "$mac"
    pool 8G
    # The package brings its own list of dependencies.
    venv "$tree"
}

phase=${1:-help}
[ $# -eq 0 ] || shift
case $phase in
list | packages | lxc | ssh | venv | bridge | bridge_at_boot | pool | keys | migrator | all) "$phase" "$@" ;;
*)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    [ "$phase" = help ] || exit 2
    ;;
esac
