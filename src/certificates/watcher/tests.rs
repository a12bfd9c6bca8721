//! Files on a disk, replaced as people and programs do it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tempfile::TempDir;

use super::super::files::Pair;
use super::super::pairs::PairInUse;
use super::*;

const DAY: i64 = 86_400;
const NOW: i64 = 20_000 * DAY;

/// A certificate for this name, valid from and until so many days from now, and its key, in PEM.
fn pem(name: &str, (from, until): (i64, i64)) -> [String; 2] {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    let at = |days: i64| {
        let seconds = (NOW + days * DAY).unsigned_abs();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    (params.not_before, params.not_after) = (at(from), at(until));
    [params.self_signed(&key).unwrap().pem(), key.serialize_pem()]
}

fn good(name: &str) -> [String; 2] {
    pem(name, (-1, 90))
}

fn put(directory: &Path, [certificate, key]: &[String; 2]) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("tls.crt"), certificate).unwrap();
    fs::write(directory.join("tls.key"), key).unwrap();
}

/// A disk with one pair, and a watcher whose clock is ours.
struct World {
    directory: TempDir,
    watcher: Watcher<PairInUse>,
    now: Instant,
    unix_s: i64,
}

impl World {
    /// With the files where `prepare` puts them; gives the directory by which they are known.
    fn new(prepare: impl FnOnce(&Path, &[String; 2])) -> Self {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path(), &good("first"));
        let pair = Pair {
            certificate: directory.path().join("live/tls.crt"),
            key: directory.path().join("live/tls.key"),
        };
        let marks = pair.marks();
        let content = pair.read().unwrap();
        let facts = pair.check(&content).unwrap();
        let mut watcher = Watcher::default();
        let digest = content.digest();
        let source = PairInUse {
            pair,
            digest,
            facts,
        };
        watcher.watch(source, marks);
        Self {
            directory,
            watcher,
            now: Instant::now(),
            unix_s: NOW,
        }
    }

    fn plain() -> Self {
        Self::new(|directory, pem| put(&directory.join("live"), pem))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// So many seconds go by: what has come of it, shortly.
    fn pass(&mut self, seconds: u32) -> Vec<String> {
        let mut said = Vec::new();
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.unix_s += 1;
            for change in self.watcher.turn(self.now, self.unix_s) {
                said.push(match change.news {
                    News::Use((content, facts)) => {
                        // What is given is what is on the disk, whole.
                        assert_eq!(change.of.pair.check(&content).unwrap(), *facts);
                        format!("use {}", facts.names[0])
                    }
                    News::Warn(why) => {
                        let directory = self.directory.path().display().to_string();
                        format!("warn {}", why.replace(&directory, ""))
                    }
                    News::Well => "well".to_owned(),
                });
            }
        }
        said
    }

    fn used(&self) -> String {
        let source = self.watcher.all().next().unwrap();
        source.facts.names[0].clone()
    }
}

#[test]
fn files_that_are_written_over_are_used() {
    let mut world = World::plain();
    assert_eq!(world.pass(5), [""; 0]);
    put(&world.path("live"), &good("second"));
    assert_eq!(world.pass(2), ["use second"]);
    assert_eq!(world.pass(100), [""; 0]);
}

#[test]
fn files_that_are_renamed_onto_are_used() {
    let mut world = World::plain();
    put(&world.path("new"), &good("second"));
    for name in ["tls.crt", "tls.key"] {
        fs::rename(world.path("new").join(name), world.path("live").join(name)).unwrap();
    }
    assert_eq!(world.pass(2), ["use second"]);
}

/// As certbot does it: `live/NAME/x.pem` is a link to `../../archive/NAME/xN.pem`, one per file.
#[test]
fn links_that_point_to_the_next_number_are_followed() {
    let mut world = World::new(|directory, pem| {
        put(&directory.join("archive/1"), pem);
        fs::create_dir(directory.join("live")).unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(
                format!("../archive/1/{name}"),
                directory.join("live").join(name),
            )
            .unwrap();
        }
    });
    put(&world.path("archive/2"), &good("second"));
    let relink = |world: &World, name: &str| {
        let path = world.path("live").join(name);
        fs::remove_file(&path).unwrap();
        symlink(format!("../archive/2/{name}"), &path).unwrap();
    };
    relink(&world, "tls.key");
    assert_eq!(world.pass(8), [""; 0], "the certificate may still come");
    relink(&world, "tls.crt");
    assert_eq!(world.pass(2), ["use second"]);
}

/// As Kubernetes does it: `tls.crt` is a link to `..data/tls.crt`, and `..data` one to a directory with a
/// date, which another link is renamed onto.
#[test]
fn a_directory_that_is_swapped_by_its_link_is_followed() {
    let mut world = World::new(|directory, pem| {
        put(&directory.join("live/..1"), pem);
        symlink("..1", directory.join("live/..data")).unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), directory.join("live").join(name)).unwrap();
        }
    });
    put(&world.path("live/..2"), &good("second"));
    symlink("..2", world.path("live/..data_tmp")).unwrap();
    fs::rename(world.path("live/..data_tmp"), world.path("live/..data")).unwrap();
    fs::remove_dir_all(world.path("live/..1")).unwrap();
    assert_eq!(world.pass(2), ["use second"]);
}

#[test]
fn what_is_broken_takes_nothing_away_and_is_warned_of() {
    let mut world = World::plain();
    let key = world.path("live/tls.key");
    fs::write(&key, "no key\n").unwrap();
    assert_eq!(
        world.pass(100),
        [
            "warn /live/tls.key holds no private key in PEM; it has a part from \
             -----BEGIN PRIVATE KEY----- to -----END PRIVATE KEY-----"
        ]
    );
    fs::remove_file(&key).unwrap();
    assert_eq!(
        world.pass(400),
        ["warn /live/tls.key: No such file or directory (os error 2)"]
    );
    fs::create_dir(&key).unwrap();
    assert_eq!(world.pass(400), ["warn /live/tls.key: it is no file"]);
    fs::remove_dir(&key).unwrap();
    fs::write(&key, vec![b'x'; (1 << 20) + 1]).unwrap();
    assert_eq!(
        world.pass(400),
        ["warn /live/tls.key: it has more than 1 MiB"]
    );
    assert_eq!(world.used(), "first");
    put(&world.path("live"), &good("second"));
    assert_eq!(world.pass(2), ["use second"]);
}

#[test]
fn a_pipe_does_not_hold_anybody_up() {
    let mut world = World::plain();
    let key = world.path("live/tls.key");
    fs::remove_file(&key).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &key, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(world.pass(20), ["warn /live/tls.key: it is no file"]);
}

#[test]
fn a_key_of_another_certificate_waits_for_it() {
    let mut world = World::plain();
    let second = good("second");
    fs::write(world.path("live/tls.key"), &second[1]).unwrap();
    assert_eq!(world.pass(9), [""; 0]);
    fs::write(world.path("live/tls.crt"), &second[0]).unwrap();
    assert_eq!(world.pass(2), ["use second"]);
    // This one never comes.
    fs::write(world.path("live/tls.key"), &good("third")[1]).unwrap();
    let said = world.pass(100);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("warn /live/tls.key belongs to another certificate; "),
        "{said:?}"
    );
    // What was there before comes back.
    fs::write(world.path("live/tls.key"), &second[1]).unwrap();
    assert_eq!(world.pass(2), ["well"]);
}

#[test]
fn a_certificate_that_clients_would_refuse_takes_nothing_away() {
    let mut world = World::plain();
    put(&world.path("live"), &pem("old", (-90, -1)));
    assert_eq!(
        world.pass(20),
        [
            "warn /live/tls.crt has a certificate that ended on 2024-10-03, and the one in use is \
             valid; put the new one there"
        ]
    );
    put(&world.path("live"), &pem("early", (1, 90)));
    let said = world.pass(400);
    assert!(
        said[0].contains("isn't valid before 2024-10-05"),
        "{said:?}"
    );
    // Its day comes, and nobody has touched the file.
    world.unix_s += DAY;
    assert_eq!(world.pass(10), ["use early"]);
    // Where neither is valid the new one is as good as the old one.
    world.unix_s += 200 * DAY;
    put(&world.path("live"), &pem("ended", (1, 100)));
    assert_eq!(world.pass(2), ["use ended"]);
}

#[test]
fn many_pairs_take_turns() {
    let mut world = World::plain();
    let pair = |number: usize| Pair {
        certificate: format!("/nowhere/{number}.crt").into(),
        key: format!("/nowhere/{number}.key").into(),
    };
    let first = world.watcher.all().next().unwrap().clone();
    for number in 0..1000 {
        // As if they were there a moment ago.
        let marks = vec![Some([0; 5]); 2];
        let source = PairInUse {
            pair: pair(number),
            ..first.clone()
        };
        world.watcher.watch(source, marks);
    }
    // Each is told once, whoever was first.
    let said = world.pass(200);
    assert_eq!(said.len(), 1000);
    put(&world.path("live"), &good("second"));
    assert_eq!(world.pass(200), ["use second"]);
    world
        .watcher
        .retain(|source| !source.pair.key.starts_with("/nowhere"));
    assert_eq!(world.watcher.all().count(), 1);
    assert_eq!(world.pass(5), [""; 0]);
    world.watcher.retain(|_| false);
    assert_eq!(world.watcher.deadline(), None);
    assert_eq!(world.pass(5), [""; 0]);
}
