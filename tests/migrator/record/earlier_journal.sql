-- A journal as migrator wrote it before its records had parts: each key at least once.
PRAGMA user_version = 1 ;
BEGIN TRANSACTION;
CREATE TABLE events (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, role TEXT NOT NULL, time REAL NOT NULL,
    step TEXT NOT NULL, phase TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
INSERT INTO "events" VALUES(1,'0badc0de','source',1764000000.0,'send','done','{"state": "preparing"}');
INSERT INTO "events" VALUES(2,'0badc0de','source',1764000001.0,'send','done','{"state": "preparing", "rounds": [{"parent": ""}], "config_digest": "c0ffee", "ticket": "7ea"}');
INSERT INTO "events" VALUES(3,'0badc0de','source',1764000002.0,'snapshot','begin','{}');
INSERT INTO "events" VALUES(4,'0badc0de','source',1764000003.0,'snapshot','done','{}');
INSERT INTO "events" VALUES(5,'0badc0de','source',1764000004.0,'snapshotted','done','{"state": "preparing", "rounds": [{"parent": "", "uuid": "0badc0de-0000-4000-8000-000000000001"}]}');
INSERT INTO "events" VALUES(6,'0badc0de','source',1764000005.0,'send','begin','{}');
INSERT INTO "events" VALUES(7,'0badc0de','source',1764000006.0,'send','done','{"bytes": 7340032, "wire": 2097152, "resumed": 0, "seconds": 1.25}');
INSERT INTO "events" VALUES(8,'0badc0de','source',1764000007.0,'sent','done','{"state": "prepared", "rounds": [{"parent": "", "uuid": "0badc0de-0000-4000-8000-000000000001", "bytes": 7340032, "full": true, "seconds": 1.25, "wire_bytes": 2097152}]}');
INSERT INTO "events" VALUES(9,'0badc0de','source',1764000008.0,'no-memory','done','{"state": "prepared", "memory": false}');
INSERT INTO "events" VALUES(10,'0badc0de','source',1764000009.0,'attempt','done','{"state": "prepared", "attempt": 2}');
INSERT INTO "events" VALUES(11,'0badc0de','source',1764000010.0,'freeze','done','{"state": "dumping", "still_monotonic": 4411.5, "init": [4711, 440000], "boot": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", "cgroup": "/sys/fs/cgroup/lxc.payload.web", "rootfs_uuid": "0badc0de-0000-4000-8000-000000000002", "frozen_at": 1764000099.5, "pid": 4711, "ports": [{"inside": "eth0", "outside": "veth1", "bridge": "br0"}]}');
INSERT INTO "events" VALUES(12,'0badc0de','source',1764000011.0,'hush-dad','done','{"state": "dumping", "dad": {"eth0": "1"}}');
INSERT INTO "events" VALUES(13,'0badc0de','source',1764000012.0,'stop','done','{"state": "dumping", "stopped_at": 1764000098.5, "stop_timeout": 60.0, "stopping": true}');
INSERT INTO "events" VALUES(14,'0badc0de','source',1764000013.0,'stop','begin','{}');
INSERT INTO "events" VALUES(15,'0badc0de','source',1764000014.0,'stop','done','{"killed": false}');
INSERT INTO "events" VALUES(16,'0badc0de','source',1764000015.0,'increment','begin','{}');
INSERT INTO "events" VALUES(17,'0badc0de','source',1764000016.0,'increment','failed','{"reason": "TimeoutError(''too slow'')"}');
INSERT INTO "events" VALUES(18,'0badc0de','source',1764000017.0,'offer','done','{"state": "offered", "figures": {"increment": 4096, "memory": 1048576, "wire_bytes": 65536, "dump_seconds": 0.21, "send_seconds": 0.1}, "leave": {"boot": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", "until": 5021.25, "lasts": 600.0}}');
INSERT INTO "events" VALUES(19,'0badc0de','source',1764000018.0,'forcing','done','{"state": "offered", "forcing": [4711, 123456]}');
INSERT INTO "events" VALUES(20,'0badc0de','source',1764000019.0,'roll-back','done','{"state": "rolling-back", "abandoned": false, "forced": true, "held": true, "kept": ["0badc0de.1"], "gone": true}');
INSERT INTO "events" VALUES(21,'0badc0de','source',1764000020.0,'rolled-back','done','{"state": "rolled-back", "kept": [], "last_copy": ["0badc0de.1"]}');
INSERT INTO "events" VALUES(22,'0badc0de','source',1764000021.0,'forced','done','{"state": "rolled-back", "forced_at": 1764000200.5}');
INSERT INTO "events" VALUES(23,'0badc0de','source',1764000022.0,'forgotten','done','{"state": "rolled-back", "abandoned": true, "forgotten_there": true}');
INSERT INTO "events" VALUES(24,'0badc0de','source',1764000023.0,'read','done','{"state": "rolled-back", "changed": 4242}');
INSERT INTO "events" VALUES(25,'0badc0de','source',1764000024.0,'behind','done','{"state": "rolled-back", "behind": false}');
INSERT INTO "events" VALUES(26,'0badc0de','destination',1764000025.0,'receive','done','{"state": "receiving"}');
INSERT INTO "events" VALUES(27,'0badc0de','destination',1764000026.0,'received','done','{"state": "received", "rounds": [{"uuid": "0badc0de-0000-4000-8000-000000000001"}]}');
INSERT INTO "events" VALUES(28,'0badc0de','destination',1764000027.0,'import','done','{"state": "importing"}');
INSERT INTO "events" VALUES(29,'0badc0de','destination',1764000028.0,'imported','done','{"state": "imported", "reaching": "", "on_disk_uuid": "0badc0de-0000-4000-8000-000000000001"}');
INSERT INTO "events" VALUES(30,'0badc0de','destination',1764000029.0,'receive-dump','done','{"state": "receiving-dump", "attempt": 2, "memory": true}');
INSERT INTO "events" VALUES(31,'0badc0de','destination',1764000030.0,'images','done','{"state": "receiving-dump", "images": "/run/migrator/0badc0de", "why": "there is room"}');
INSERT INTO "events" VALUES(32,'0badc0de','destination',1764000031.0,'increment','done','{"state": "receiving-dump", "increment_uuid": "0badc0de-0000-4000-8000-000000000003"}');
INSERT INTO "events" VALUES(33,'0badc0de','destination',1764000032.0,'dump-received','done','{"state": "dump-received", "image_files": ["core-1.img", "pages-1.img"], "dad": {"eth0": "1"}}');
INSERT INTO "events" VALUES(34,'0badc0de','destination',1764000033.0,'own','done','{"state": "owned"}');
INSERT INTO "events" VALUES(35,'0badc0de','destination',1764000034.0,'leave','done','{"state": "owned", "leave": {"boot": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", "until": 5021.25, "lasts": 600.0}}');
INSERT INTO "events" VALUES(36,'0badc0de','destination',1764000035.0,'restore','done','{"state": "restoring"}');
INSERT INTO "events" VALUES(37,'0badc0de','destination',1764000036.0,'rootfs','begin','{}');
INSERT INTO "events" VALUES(38,'0badc0de','destination',1764000037.0,'rootfs','done','{"rootfs_uuid": "0badc0de-0000-4000-8000-000000000004", "on_disk_uuid": "0badc0de-0000-4000-8000-000000000003"}');
INSERT INTO "events" VALUES(39,'0badc0de','destination',1764000038.0,'restore-failed','done','{"state": "owned", "failed": "it has no processes"}');
INSERT INTO "events" VALUES(40,'0badc0de','destination',1764000039.0,'restore','done','{"state": "restoring"}');
INSERT INTO "events" VALUES(41,'0badc0de','destination',1764000040.0,'restored','done','{"state": "restored", "restored_at": 1764000150.5, "hwaddrs": ["00:16:3e:00:00:01"], "rootfs_uuid": "0badc0de-0000-4000-8000-000000000004", "had_stopped": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11"}');
INSERT INTO "events" VALUES(42,'0badc0de','destination',1764000041.0,'finished','done','{"state": "finished", "given_way": true, "forced": true}');
INSERT INTO "events" VALUES(43,'0badc0de','destination',1764000042.0,'forgotten','done','{"state": "finished", "forgotten": true}');
INSERT INTO "events" VALUES(44,'0badc0df','destination',1764000043.0,'receive','done','{"state": "receiving"}');
INSERT INTO "events" VALUES(45,'0badc0df','destination',1764000044.0,'abandon','done','{"state": "abandoning", "given_up_here": true, "on_disk": true, "kept": []}');
INSERT INTO "events" VALUES(46,'0badc0df','destination',1764000045.0,'abandoned','done','{"state": "abandoned"}');
INSERT INTO "events" VALUES(47,'0badc0df','destination',1764000046.0,'source-knows','done','{"state": "abandoned", "source_knows": true}');
INSERT INTO "events" VALUES(48,'0badc0e0','destination',1764000047.0,'abandon','done','{"state": "abandoning"}');
INSERT INTO "events" VALUES(49,'0badc0e0','destination',1764000048.0,'abandoned','done','{"state": "abandoned"}');
INSERT INTO "events" VALUES(50,'0badc0e1','source',1764000049.0,'send','done','{"state": "preparing"}');
INSERT INTO "events" VALUES(51,'0badc0e1','source',1764000050.0,'pid','done','{"state": "preparing", "pid": 4712}');
INSERT INTO "events" VALUES(52,'0badc0e1','source',1764000051.0,'stopping','done','{"state": "preparing", "stopping": false, "figures": {"increment": 4096, "memory": 0, "wire_bytes": 65536, "stop_seconds": 2.5, "killed": true, "send_seconds": 0.1}}');
INSERT INTO "events" VALUES(53,'0badc0e1','source',1764000052.0,'pages','begin','{}');
INSERT INTO "events" VALUES(54,'0badc0e1','source',1764000053.0,'pages','done','{"bytes": 1, "files": 2, "wire": 3, "resumed": 0}');
CREATE TABLE migrations (
    id TEXT NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL, lxcpath TEXT NOT NULL, peer TEXT NOT NULL,
    state TEXT NOT NULL, owner TEXT NOT NULL, detail TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (id, role)
) STRICT;
INSERT INTO "migrations" VALUES('0badc0de','source','web','/var/lib/lxc','root@hostb','rolled-back','source','{"destination_host": "hostb", "other_name": "shop", "destination_fingerprint": "3f1c", "origin": "00000001", "source_lxcpath": "/var/lib/lxc", "destination_lxcpath": "/pool", "lxcpath_given": true, "bridges": {"br0": "br1"}, "rounds": [{"parent": "", "uuid": "0badc0de-0000-4000-8000-000000000001", "bytes": 7340032, "full": true, "seconds": 1.25, "wire_bytes": 2097152}], "one_shot": true, "memory": false, "options": {"max_downtime": 120.0, "max_rounds": 5, "reconnect": 300.0, "ignore": ["ghost"], "stop_timeout": 60.0}, "config_digest": "c0ffee", "ticket": "7ea", "attempt": 2, "still_monotonic": 4411.5, "init": [4711, 440000], "boot": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", "cgroup": "/sys/fs/cgroup/lxc.payload.web", "rootfs_uuid": "0badc0de-0000-4000-8000-000000000002", "frozen_at": 1764000099.5, "pid": 4711, "ports": [{"inside": "eth0", "outside": "veth1", "bridge": "br0"}], "dad": {"eth0": "1"}, "stopped_at": 1764000098.5, "stop_timeout": 60.0, "stopping": true, "figures": {"increment": 4096, "memory": 1048576, "wire_bytes": 65536, "dump_seconds": 0.21, "send_seconds": 0.1}, "leave": {"boot": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", "until": 5021.25, "lasts": 600.0}, "forcing": [4711, 123456], "abandoned": true, "forced": true, "held": true, "kept": [], "gone": true, "last_copy": ["0badc0de.1"], "ended_by": ["5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", 4711, 123456], "forced_at": 1764000200.5, "forgotten_there": true, "changed": 4242, "behind": false}',1764000000.0,1764000024.0);
INSERT INTO "migrations" VALUES('0badc0de','destination','shop','/pool','hosta','finished','destination','{"destination": "root@hostb", "other_name": "web", "origin": "00000001", "moves": ["00000001", "0badc0dd"], "source_lxcpath": "/var/lib/lxc", "destination_lxcpath": "/pool", "lxcpath_given": false, "rounds": [{"uuid": "0badc0de-0000-4000-8000-000000000001"}], "mapped_root": 100000, "one_shot": false, "memory": true, "caller": "ssh:hosta", "hooks": false, "hooks_fix": "add `hooks` to its key", "ticket": "7ea", "announced": 7340032, "disk": "9c3f5a0012", "reaching": "", "on_disk_uuid": "0badc0de-0000-4000-8000-000000000001", "attempt": 2, "images": "/run/migrator/0badc0de", "why": "there is room", "increment_uuid": "0badc0de-0000-4000-8000-000000000003", "image_files": ["core-1.img", "pages-1.img"], "dad": {"eth0": "1"}, "leave": {"boot": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", "until": 5021.25, "lasts": 600.0}, "failed": "it has no processes", "restored_at": 1764000150.5, "hwaddrs": ["00:16:3e:00:00:01"], "rootfs_uuid": "0badc0de-0000-4000-8000-000000000004", "had_stopped": "5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", "given_way": true, "forced": true, "ended_by": ["5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", 4711, 123456], "forgotten": true}',1764000025.0,1764000042.0);
INSERT INTO "migrations" VALUES('0badc0df','destination','shop','/pool','hosta','abandoned','source','{"rounds": [], "moves": null, "given_up_here": true, "on_disk": true, "kept": [], "ended_by": ["5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", 4711, 123456], "source_knows": true}',1764000043.0,1764000046.0);
INSERT INTO "migrations" VALUES('0badc0e0','destination','shop','/pool','hosta','abandoned','source','{"never_began": true, "caller": "ssh", "ended_by": ["5a0bd07a-9ad2-4a3c-8d1f-2a5f6e0c0a11", 4711, 123456]}',1764000047.0,1764000048.0);
INSERT INTO "migrations" VALUES('0badc0e1','source','db','/var/lib/lxc','root@hostb','preparing','source','{"rounds": [], "memory": false, "pid": 4712, "stopping": false, "figures": {"increment": 4096, "memory": 0, "wire_bytes": 65536, "stop_seconds": 2.5, "killed": true, "send_seconds": 0.1}}',1764000049.0,1764000051.0);
CREATE INDEX events_by_migration ON events (id, role, number);
COMMIT;
