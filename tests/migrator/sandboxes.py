# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounts of a Debian 13 guest, as its first process and two of its services have them; shortened."""

OWN = """\
349 161 0:206 /s1/rootfs / rw,noatime shared:136 - btrfs /dev/loop2 rw,subvol=/s1/rootfs
350 349 0:212 / /dev rw,relatime shared:156 - tmpfs none rw,size=492k,mode=755
351 349 0:213 / /proc rw,nosuid shared:170 - proc proc rw
399 354 0:38 /lxc.payload.s1 /sys/fs/cgroup rw,nosuid shared:175 - cgroup2 none rw
411 350 0:154 /null /dev/null rw,relatime shared:158 - tmpfs tmpfs rw,mode=755
416 350 0:215 / /dev/pts rw,nosuid shared:163 - devpts devpts rw,gid=100005
418 350 0:215 /0 /dev/console rw,nosuid shared:165 - devpts devpts rw,gid=100005
419 350 0:215 /1 /dev/tty1 rw,nosuid shared:166 - devpts devpts rw,gid=100005
163 349 0:217 / /run rw,nosuid shared:177 - tmpfs tmpfs rw,mode=755
206 349 0:219 / /tmp rw,nosuid shared:180 - tmpfs tmpfs rw
613 163 0:229 / /run/credentials/console-getty.service ro,nosuid shared:292 - ramfs ramfs rw,mode=700
"""
LOGIND = """\
640 610 0:206 /s1/rootfs / ro,nosuid shared:235 master:136 - btrfs /dev/loop2 rw,subvol=/s1/rootfs
643 641 0:154 /null /dev/null rw,nosuid shared:271 master:158 - tmpfs tmpfs rw,mode=755
648 641 0:215 / /dev/pts rw,nosuid shared:276 master:163 - devpts devpts rw,gid=100005
650 641 0:215 /0 /dev/console rw,nosuid shared:278 master:165 - devpts devpts rw,gid=100005
651 641 0:215 /1 /dev/tty1 rw,nosuid - devpts devpts rw,gid=100005
663 640 0:38 /lxc.payload.s1 /sys/fs/cgroup ro,nosuid shared:287 master:175 - cgroup2 none rw
664 640 0:217 / /run rw,nosuid shared:289 master:177 - tmpfs tmpfs rw,mode=755
667 664 0:217 /systemd/propagate/systemd-logind.service /run/systemd/incoming ro master:177 - tmpfs tmpfs rw,mode=755
671 640 0:228 / /proc rw,nosuid shared:303 - proc proc rw
681 663 0:38 /lxc.payload.s1/a/systemd-logind.service/memory.pressure /sys/m rw shared:288 master:175 - cgroup2 none rw
614 664 0:229 / /run/credentials/console-getty.service ro,nosuid shared:313 master:292 - ramfs ramfs rw,mode=700
"""
RESOLVED = """\
460 218 0:206 /s1/rootfs / ro,nosuid shared:184 master:136 - btrfs /dev/loop2 rw,subvol=/s1/rootfs
489 460 0:217 / /run rw,nosuid shared:192 master:177 - tmpfs tmpfs rw,mode=755
493 460 0:219 / /tmp rw,nosuid shared:199 master:180 - tmpfs tmpfs rw
495 460 0:223 / /dev ro,nosuid shared:201 - tmpfs tmpfs rw,size=4096k
476 489 0:225 / /run/credentials ro,nosuid shared:194 - tmpfs tmpfs rw,size=4096k
477 476 0:221 / /run/credentials/systemd-resolved.service ro,nosuid shared:195 master:182 - ramfs ramfs rw,mode=700
478 489 0:217 /systemd/propagate/systemd-resolved.service /run/systemd/incoming ro master:177 - tmpfs tmpfs rw,mode=755
480 486 0:214 /fs/bpf /sys/fs/bpf ro,nosuid shared:189 master:173 - sysfs sysfs rw
492 493 0:222 /tmp /tmp rw,nosuid shared:200 - tmpfs tmpfs rw,mode=700
562 460 0:222 /var-tmp /var/tmp rw,nosuid shared:225 - tmpfs tmpfs rw,mode=700
"""
OUTSIDE = {"0:154", "0:38"}
