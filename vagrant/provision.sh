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
#   provision.sh cards NAME=MAC...        give the network cards with these MACs these names
#   provision.sh at_boot PHASE ...        do a phase now and at every boot
#   provision.sh pool [SIZE]              btrfs on a sparse file, mounted at /pool, now and at every boot
#   provision.sh keys                     root's key and who may enter, from $RIG_KEY (a private key)
#   provision.sh migrator DIRECTORY       install migrator from this working tree, without its dependencies
#   provision.sh all ADDRESS/LEN MAC DIRECTORY          everything, for a real virtual machine
#   provision.sh behind_nat MACHINE NAT-A NAT-B DIRECTORY NAME=MAC...
#                                         everything, for one of those of the rig with NATs: hosta, hostb, their routers
#                                         nata and natb, rendezvous, client
#   provision.sh meet                     on hosta and hostb: learn from rendezvous where peers meet
#
# Each phase is safe to repeat.
set -eu

VENV=/opt/migrator/venv
WIRES=/usr/local/lib/migrator-rig/network
MEET=198.51.100.5
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
    # lxcbr0 is made by `bridge`, without the DHCP server that lxc-net would start; and has, as it is installed.
    if [ -d /run/systemd/system ]; then
        systemctl stop lxc-net
        systemctl mask -q lxc-net
    fi
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

cards() {
    for pair in "$@"; do
        name=${pair%%=*}
        port=$(card "${pair#*=}")
        [ "$port" = "$name" ] || { ip link set dev "$port" down && ip link set dev "$port" name "$name"; }
    done
}

# What vm_network.py has written, after the cards have got their names.
wires() {
    cards "$@"
    sh $WIRES
}

at_boot() {
    install -m 755 "$0" /usr/local/sbin/migrator-provision
    cat >/etc/systemd/system/migrator-network.service <<UNIT
[Unit]
Description=The network of migrator's two-host rig
Wants=network-online.target
After=network-online.target networking.service systemd-networkd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/migrator-provision $*

[Install]
WantedBy=multi-user.target
UNIT
    systemctl daemon-reload
    systemctl enable -q migrator-network.service
    systemctl restart migrator-network.service
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

# In a subshell: what is installed later must stay readable for all.
keys() (
    umask 077
    echo "$RIG_KEY" >/root/.ssh/id_ed25519
    ssh-keygen -y -f /root/.ssh/id_ed25519 >/root/.ssh/id_ed25519.pub
    grep -qsxFf /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys ||
        cat /root/.ssh/id_ed25519.pub >>/root/.ssh/authorized_keys
)

migrator() {
    $VENV/bin/python -m pip install -q --no-cache-dir --force-reinstall --no-deps --no-build-isolation --no-index "$1"
}

all() {
    address=$1 mac=$2 tree=$3
    packages
    lxc
    at_boot bridge "$address" "$mac"
    host "$tree"
}

# What hosta and hostb are besides their network.
host() {
    sshd
    pool 8G
    # The package brings its own list of dependencies.
    venv "$1"
}

sshd() {
    ssh
    [ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
    systemctl restart ssh
    [ -z "${RIG_KEY:-}" ] || keys
}

behind_nat() {
    machine=$1 nat_a=$2 nat_b=$3 tree=$4
    shift 4
    case $machine in
    hosta | hostb)
        packages
        lxc
        ;;
    *)
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q
        apt-get install -q -y --no-install-recommends ca-certificates iproute2 iputils-ping nftables openssh-server procps \
            python3 python3-venv
        ;;
    esac
    mkdir -p "${WIRES%/*}"
    PYTHONPATH=$tree/vagrant python3 -m riglib.vm_network "$machine" "$nat_a" "$nat_b" >$WIRES.new
    mv $WIRES.new $WIRES
    at_boot wires "$@"
    case $machine in
    hosta | hostb)
        host "$tree"
        install -m 644 "$tree/systemd/migrator-agent.service" /etc/systemd/system/
        ;;
    rendezvous)
        sshd
        venv "$tree"
        rendezvous "$tree"
        ;;
    esac
}

# Two addresses, so that a host learns what kind of NAT it is behind.
rendezvous() {
    install -m 644 "$1/systemd/migrator-rendezvous.service" /etc/systemd/system/
    mkdir -p /etc/systemd/system/migrator-rendezvous.service.d
    cat >/etc/systemd/system/migrator-rendezvous.service.d/rig.conf <<UNIT
[Unit]
After=migrator-network.service

[Service]
Environment=MIGRATOR_RENDEZVOUS_OPTIONS="--listen $MEET:443 --listen 203.0.113.5:443"
UNIT
    systemctl daemon-reload
    systemctl enable -q migrator-rendezvous.service
    systemctl restart migrator-rendezvous.service
}

# Through the NAT: rendezvous lets in who has the rig's key.
meet() {
    url=$(/usr/bin/ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o ConnectTimeout=20 root@$MEET \
        "journalctl -u migrator-rendezvous -o cat | grep -o 'wss://[^ ]*' | tail -n 1")
    [ -n "$url" ] || { echo "provision.sh: no rendezvous runs at $MEET" >&2 && exit 1; }
    mkdir -p /etc/migrator
    printf '[rendezvous]\nservers = %s\n' "$url" >/etc/migrator/tunnel.conf
}

phase=${1:-help}
[ $# -eq 0 ] || shift
case $phase in
list | packages | lxc | ssh | venv | bridge | cards | wires | at_boot | pool | keys | migrator | all | behind_nat | meet)
    "$phase" "$@"
    ;;
*)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    [ "$phase" = help ] || exit 2
    ;;
esac
