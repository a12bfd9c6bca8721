//! The authority as clients and administrators meet it: what it signs is trusted for its names and no
//! others, there is one of it however many start at once, and nothing broken is believed or replaced.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::{Arc, Barrier};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use tempfile::TempDir;

use super::*;

/// 2026-11-28.
const NOW: i64 = 1_795_824_000;

fn places(directory: &TempDir) -> Places {
    Places::at(vec![directory.path().join("state")])
}

fn names(names: &[&str]) -> Vec<Name> {
    names
        .iter()
        .map(|name| Name::parse(name).unwrap())
        .collect()
}

/// What a client that trusts this authority says of a certificate.
fn verify(authority: &Authority, leaf: &Leaf, name: &str, now_s: i64) -> Result<(), String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der.clone().into()).unwrap();
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
    let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s.unsigned_abs()));
    let verified =
        (verifier.build().unwrap()).verify_server_cert(&certificate, &[], &name, &[], now);
    verified.map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn what_it_signs_is_trusted_for_its_names_alone() {
    let directory = tempfile::tempdir().unwrap();
    let ca = LocalCa::open(&places(&directory), NOW).unwrap();
    let listed = ["localhost", "127.0.0.1", "::1", "a.example", "*.b.example"];
    let leaf = ca.issue(&names(&listed), NOW).unwrap();
    let says = |name: &str, at| verify(ca.authority(), &leaf, name, at);
    for name in ["localhost", "127.0.0.1", "::1", "a.example", "x.b.example"] {
        assert_eq!(says(name, NOW), Ok(()), "{name}");
    }
    for name in [
        "b.example",
        "x.y.b.example",
        "c.example",
        "127.0.0.2",
        "::2",
    ] {
        assert!(
            says(name, NOW).unwrap_err().contains("not valid for name"),
            "{name}"
        );
    }
    // A client whose clock is behind, and each end.
    assert_eq!(says("localhost", NOW - 3600), Ok(()));
    assert!(says("localhost", NOW - 3601).is_err());
    assert_eq!(says("localhost", leaf.not_after), Ok(()));
    assert!(says("localhost", leaf.not_after + 1).is_err());
    let days = (leaf.not_after - leaf.not_before + 1) as f64 / DAY as f64;
    assert_eq!(days, 397.0, "no more than clients take");
    let left = leaf.not_after - leaf.renew_at();
    assert_eq!(left / DAY, 132);

    // Another authority, as of another machine, signs nothing that is trusted here.
    let other = LocalCa::new(Kept::InMemory(String::new()), NOW).unwrap();
    let foreign = other.issue(&names(&["localhost"]), NOW).unwrap();
    assert!(verify(ca.authority(), &foreign, "localhost", NOW).is_err());
    assert_ne!(other.authority().name, ca.authority().name);
}

#[test]
fn a_certificate_and_its_key_belong_together_and_no_two_are_the_same() {
    let ca = LocalCa::new(Kept::InMemory(String::new()), NOW).unwrap();
    let [one, two] = [(); 2].map(|()| ca.issue(&names(&["a.example"]), NOW).unwrap());
    let chain = vec![CertificateDer::from_pem_slice(one.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(one.key.as_bytes()).unwrap();
    let provider = default_provider();
    CertifiedKey::from_der(chain.clone(), key, &provider).unwrap();
    let key = PrivateKeyDer::from_pem_slice(two.key.as_bytes()).unwrap();
    assert!(CertifiedKey::from_der(chain.clone(), key, &provider).is_err());
    let facts = x509::read(&chain[0]).unwrap();
    assert_eq!(
        (&*facts.subject, facts.issuer),
        ("a.example", ca.authority.name.clone())
    );
    assert_eq!(facts.key.to_string(), "ECDSA P-256");
    assert!(!facts.is_authority);
    assert!(!format!("{ca:?} {one:?}").contains("PRIVATE"));
}

#[test]
fn the_next_start_has_the_same_authority() {
    let directory = tempfile::tempdir().unwrap();
    let first = LocalCa::open(&places(&directory), NOW).unwrap();
    let second = LocalCa::open(&places(&directory), NOW + 300 * DAY).unwrap();
    assert_eq!(first.authority(), second.authority());
    let leaf = second
        .issue(&names(&["a.example"]), NOW + 300 * DAY)
        .unwrap();
    assert_eq!(
        verify(first.authority(), &leaf, "a.example", NOW + 301 * DAY),
        Ok(())
    );
    let found = Authority::find(&places(&directory)).unwrap().unwrap();
    assert_eq!(&found, first.authority());
    assert_eq!(
        fs::read_to_string(found.file().unwrap()).unwrap(),
        found.pem()
    );
    assert_eq!(found.fingerprint().len(), 32 * 3 - 1);
}

#[test]
fn its_files_are_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    LocalCa::open(&places(&directory), NOW).unwrap();
    let place = directory.path().join("state");
    for (path, mode) in [
        ("", 0o700),
        ("local-ca", 0o700),
        ("local-ca/ca.key", 0o600),
        ("local-ca/ca.pem", 0o600),
    ] {
        let found = fs::metadata(place.join(path)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{path}");
    }
}

#[test]
fn servers_that_start_at_once_have_one_authority() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let (places, barrier) = (places(&directory), Barrier::new(8));
        let start = || {
            barrier.wait();
            LocalCa::open(&places, NOW).unwrap().authority
        };
        let all: Vec<Authority> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(all.iter().all(|one| *one == all[0]), "{all:?}");
        assert!(matches!(all[0].kept, Kept::At(_)));
        let left: Vec<_> = fs::read_dir(directory.path().join("state"))
            .unwrap()
            .collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

#[test]
fn where_nothing_can_be_kept_it_is_in_memory_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let places = Places::at(vec![file.join("state"), "/proc/nothing/can".into()]);
    let ca = LocalCa::open(&places, NOW).unwrap();
    let Kept::InMemory(why) = &ca.authority().kept else {
        panic!("{:?}", ca.authority().kept);
    };
    assert!(
        why.contains("file/state: ") && why.contains("/proc/nothing/can: "),
        "{why}"
    );
    assert_eq!(ca.authority().file(), None);
    let leaf = ca.issue(&names(&["localhost"]), NOW).unwrap();
    assert_eq!(verify(ca.authority(), &leaf, "localhost", NOW), Ok(()));
    assert_eq!(Authority::find(&places), Ok(None));
}

#[test]
fn one_that_is_there_is_taken_before_one_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (directory.path().join("a"), directory.path().join("b"));
    let made = LocalCa::open(&Places::at(vec![second.clone()]), NOW).unwrap();
    let both = Places::at(vec![first.clone(), second]);
    let found = LocalCa::open(&both, NOW).unwrap();
    assert_eq!(found.authority(), made.authority());
    assert!(!first.exists());
}

/// Breaks the files in some way, and gives what is said about it.
fn broken(change: impl FnOnce(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    LocalCa::open(&places(&directory), NOW).unwrap();
    let path = directory.path().join("state/local-ca");
    change(&path);
    let before = snapshot(&path);
    let problem = LocalCa::open(&places(&directory), NOW).unwrap_err();
    assert_eq!(snapshot(&path), before, "what is broken isn't touched");
    let shown = problem.to_string();
    assert!(shown.contains("local-ca"), "{shown}");
    shown.replace(directory.path().to_str().unwrap(), "")
}

fn snapshot(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = match fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap_or_default()))
            .collect(),
        Err(_) => vec![(path.to_owned(), fs::read(path).unwrap_or_default())],
    };
    all.sort();
    all
}

#[test]
fn a_broken_authority_is_an_error_and_never_replaced() {
    let truncate = |name: &'static str, length: usize| {
        move |path: &Path| {
            let content = fs::read(path.join(name)).unwrap();
            fs::write(path.join(name), &content[..length]).unwrap();
        }
    };
    for length in [0, 1, 30, 100, 180] {
        let said = broken(truncate("ca.key", length));
        assert!(said.contains("ca.key is damaged; put both files"), "{said}");
        let said = broken(truncate("ca.pem", length));
        assert!(said.contains("ca.pem is damaged"), "{said}");
    }
    for name in ["ca.pem", "ca.key"] {
        let said = broken(|path| fs::remove_file(path.join(name)).unwrap());
        assert!(
            said.contains(&format!("{name} can't be read: No such file")),
            "{said}"
        );
        let said = broken(|path| fs::write(path.join(name), [b'x'; 70_000]).unwrap());
        assert!(said.contains("is larger than any"), "{said}");
        let said = broken(|path| {
            fs::rename(path.join(name), path.join("other")).unwrap();
            symlink("other", path.join(name)).unwrap();
        });
        assert!(said.contains("can't be read"), "{said}");
    }
    let said = broken(|path| {
        for name in ["ca.pem", "ca.key"] {
            fs::remove_file(path.join(name)).unwrap();
        }
    });
    assert!(
        said.contains("ca.pem can't be read"),
        "an empty one: {said}"
    );
    let said = broken(|path| {
        let other = LocalCa::new(Kept::InMemory(String::new()), NOW).unwrap();
        fs::write(path.join("ca.key"), other.key.pem().as_bytes()).unwrap();
    });
    assert!(
        said.contains("ca.key belongs to another certificate"),
        "{said}"
    );
    let said = broken(|path| {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params("Another authority");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Others");
        let foreign = params.self_signed(&key).unwrap();
        fs::write(
            path.join("ca.pem"),
            pem::encode("CERTIFICATE", foreign.der()),
        )
        .unwrap();
    });
    assert!(
        said.contains("ca.pem is none that Beltway has made"),
        "{said}"
    );
    let said = broken(|path| {
        fs::remove_dir_all(path).unwrap();
        fs::write(path, "").unwrap();
    });
    assert!(said.contains("is no directory"), "{said}");
}

#[test]
fn a_changed_certificate_is_noticed_wherever_it_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let ca = LocalCa::open(&places(&directory), NOW).unwrap();
    let path = directory.path().join("state/local-ca/ca.pem");
    let der = &ca.authority().der;
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 0x10;
        fs::write(&path, pem::encode("CERTIFICATE", &changed)).unwrap();
        assert!(LocalCa::open(&places(&directory), NOW).is_err(), "{at}");
        assert!(Authority::find(&places(&directory)).is_err(), "{at}");
    }
}

#[test]
fn what_others_could_have_read_or_made_is_refused() {
    let mode = |name: &'static str, mode| {
        broken(move |path| {
            fs::set_permissions(path.join(name), fs::Permissions::from_mode(mode)).unwrap();
        })
    };
    insta::assert_snapshot!(mode("ca.key", 0o640), @"the local authority: /state/local-ca/ca.key is open to other users (mode 640); if nobody can have read or changed it: chmod 600 /state/local-ca/ca.key; else remove the directory, and the next start makes a new one, which has to be trusted again");
    assert!(mode("ca.pem", 0o666).contains("chmod 600"));
    assert!(mode("", 0o755).contains("chmod 700"));
    // That others read the certificate harms nobody.
    let directory = tempfile::tempdir().unwrap();
    let made = LocalCa::open(&places(&directory), NOW).unwrap();
    let file = made.authority().file().unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(LocalCa::open(&places(&directory), NOW).is_ok());
    // Through a link the directory could be anybody's.
    let said = broken(|path| {
        let moved = path.with_file_name("moved");
        fs::rename(path, &moved).unwrap();
        symlink(moved, path).unwrap();
    });
    assert!(said.contains("is no directory"), "{said}");
}

#[test]
fn it_ends_after_ten_years_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let ca = LocalCa::open(&places(&directory), NOW).unwrap();
    let end = ca.authority().not_after;
    assert_eq!((end - NOW) / DAY, 3652);
    let last = ca.issue(&names(&["a.example"]), end - 10 * DAY).unwrap();
    assert_eq!(last.not_after, end, "no certificate outlives it");
    assert_eq!(verify(ca.authority(), &last, "a.example", end), Ok(()));
    let problem = LocalCa::open(&places(&directory), end + 1).unwrap_err();
    assert!(
        problem
            .message
            .ends_with("local-ca has ended on 2036-11-27"),
        "{problem}"
    );
    assert!(ca.issue(&names(&["a.example"]), end + 1).is_err());
}

#[test]
fn what_it_cannot_sign_for_is_told() {
    let ca = LocalCa::new(Kept::InMemory(String::new()), NOW).unwrap();
    assert!(ca.issue(&[], NOW).unwrap_err().message.contains("no name"));
    let many: Vec<Name> = (0..201)
        .map(|n| Name::Dns(format!("a{n}.example")))
        .collect();
    let problem = ca.issue(&many, NOW).unwrap_err();
    insta::assert_snapshot!(problem, @"no certificate can be made: it would be for 201 names, and has at most 200; name a certificate of your own by `tls = { cert, key }`");
    assert!(ca.issue(&many[..200], NOW).is_ok());
    // A clock that was never set is the client's trouble, not a crash.
    for now in [i64::MIN, 0, i64::MAX] {
        let ca = LocalCa::new(Kept::InMemory(String::new()), now).unwrap();
        assert!(
            ca.issue(&names(&["a.example"]), now).is_ok() || now == i64::MAX,
            "{now}"
        );
    }
    // No common name is possible: the names stand where clients look.
    let long = Name::Dns(format!("{}.example", ["a"; 40].join(".")));
    let leaf = ca.issue(std::slice::from_ref(&long), NOW).unwrap();
    assert_eq!(
        verify(ca.authority(), &leaf, &long.to_string(), NOW),
        Ok(())
    );
}
