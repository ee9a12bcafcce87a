#!/bin/sh
# Sets a host of the two-host rig up. One script for both rigs: vagrant/rig calls single phases of it while it builds and starts its
# namespaces, the Vagrantfile calls `provision.sh all` in a real virtual machine.
#
#   provision.sh list                     print the packages a host needs
#   provision.sh packages                 install them
#   provision.sh lxc                      LXC's defaults: /pool as LXC path, lxcbr0, subordinate ids for root
#   provision.sh ssh                      an sshd for tests: keys only, one fast host key type
#   provision.sh venv [REQUIREMENT...]    the virtual environment for migrator, with these run-time dependencies in it
#   provision.sh bridge ADDRESS/LEN [PORT [IPV6/LEN]]   make lxcbr0; PORT (its addresses move to the bridge) becomes its uplink
#   provision.sh pool [SIZE]              btrfs on a sparse file, mounted at /pool (also after a reboot)
#   provision.sh migrator DIRECTORY       install migrator from this working tree
#   provision.sh all ADDRESS/LEN PORT DIRECTORY         everything, for a real virtual machine
#
# Each phase is safe to repeat.
set -eu

VENV=/opt/migrator/venv

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
    # shellcheck disable=SC2046  # one word a package
    apt-get install -q -y --no-install-recommends $(list)
}

lxc() {
    mkdir -p /pool /etc/lxc
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
    $VENV/bin/python -m pip install -q --no-cache-dir --only-binary :all: setuptools wheel "$@"
    ln -sf $VENV/bin/migrator /usr/local/bin/migrator
}

bridge() {
    address=$1 port=${2:-} address6=${3:-}
    if ! ip link show dev lxcbr0 >/dev/null 2>&1; then
        ip link add lxcbr0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0
    fi
    if [ -n "$port" ]; then
        ip address flush dev "$port"
        ip link set dev "$port" master lxcbr0 up
    fi
    ip address replace "$address" dev lxcbr0
    [ -z "$address6" ] || ip address replace "$address6" dev lxcbr0 nodad
    ip link set dev lxcbr0 up
}

# A bridge does not survive a reboot: a unit runs `bridge` again.
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
    systemctl enable -q --now migrator-bridge.service
}

pool() {
    size=${1:-8G} image=/var/lib/migrator-pool.img
    mkdir -p /pool
    if [ ! -e $image ]; then
        truncate -s "$size" $image.new
        mkfs.btrfs -q $image.new
        mv $image.new $image
    fi
    grep -qs " /pool btrfs " /etc/fstab || echo "$image /pool btrfs loop,noatime 0 0" >>/etc/fstab
    mountpoint -q /pool || mount /pool
}

migrator() {
    $VENV/bin/python -m pip install -q --no-cache-dir --force-reinstall --no-deps --no-build-isolation --no-index "$1"
}

all() {
    address=$1 port=$2 tree=$3
    packages
    lxc
    ssh
    [ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
    systemctl restart ssh
    bridge_at_boot "$address" "$port"
    pool
    venv
    # With its dependencies, unlike `migrator`: nobody listed them to `venv`.
    [ ! -e "$tree/setup.py" ] || $VENV/bin/python -m pip install -q --no-cache-dir "$tree"
}

phase=${1:-help}
[ $# -eq 0 ] || shift
case $phase in
list | packages | lxc | ssh | venv | bridge | pool | migrator | all) "$phase" "$@" ;;
*)
    sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
    [ "$phase" = help ] || exit 2
    ;;
esac
