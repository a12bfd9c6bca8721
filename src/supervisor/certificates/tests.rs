//! The keeper with virtual time, real files and an authority of its own.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Arc, mpsc};

use rustix::event::{PollFd, PollFlags, poll};

use super::{
    ASK_EVERY, Duration, Ending, Instant, Keeper, Model, Pem, Replaced, time, wanted,
    wanted_clients,
};
use crate::certificates::Places;
use crate::config::{self, sources::Input};
use crate::net::tls::ocsp::{Authority, Issued, Said, names_responder};
use crate::supervisor::control::certificates::OcspState;
use crate::util::clock;

const DAY: i64 = 86_400;
const NOW: i64 = 1_800_000_000;

fn model(directory: &Path, sites: &str) -> Arc<Model> {
    let input = Input {
        file: Some(directory.join("beltway.toml")),
        content: Some(sites.to_owned()),
        directory: directory.to_owned(),
        check_files: true,
        ..Input::default()
    };
    match config::load(&input) {
        Ok(loaded) => loaded.model,
        Err(diagnostics) => panic!("{}", diagnostics.render(false)),
    }
}

fn keeper(directory: &Path) -> Keeper {
    Keeper::new(Places::at(vec![directory.join("state")]))
}

/// A certificate for a name, and its key.
fn put(directory: &Path, name: &str) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let at = |days: i64| {
        let since = (NOW + days * DAY).unsigned_abs();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since)
    };
    (params.not_before, params.not_after) = (at(-10), at(355));
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(directory.join("a.key"), key.serialize_pem()).unwrap();
    std::fs::write(directory.join("a.pem"), certificate.pem()).unwrap();
}

/// What stands in place of the model's.
fn replaced(certificates: &[Pem]) -> Replaced {
    Replaced {
        certificates: certificates.to_vec(),
        ..Replaced::default()
    }
}

const MADE: &str = "[site.\"*\"]\nlisten = [\"127.0.0.7:1\"]\nrespond = 204\ntls = \"self-signed\"\n\
                    [site.\"b.example\"]\naliases = [\"*.b.example\"]\nrespond = 204\n\
                    tls = { self_signed = true }\n";
const FILES: &str = "[site.\"a.test\"]\nrespond = 204\ntls = { cert = \"a.pem\", key = \"a.key\" }\n\
                     [site.\"b.test\"]\nrespond = 204\ntls = { cert = \"a.pem\", key = \"a.key\" }\n";

#[test]
fn a_site_gets_a_certificate_for_its_names_and_has_it_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let model = model(directory.path(), MADE);
    let all = wanted(&model);
    let mut keeper = keeper(directory.path());
    let made = keeper.begin(&all, NOW).unwrap().certificates;
    let names = |pem: &Pem| pem.facts().unwrap().all_names();
    assert_eq!(names(&made[1]), ["b.example", "*.b.example"]);
    for name in ["localhost", "127.0.0.1", "::1", "127.0.0.7"] {
        assert!(names(&made[0]).contains(&name.to_owned()), "{name}");
    }
    assert_eq!(replaced(&made).made().unwrap().identities.len(), 2);
    let start = Instant::now();
    keeper.take((&all, &[]), (&replaced(&made), &model), (start, NOW));
    // A reload, and a master that takes over, make no others.
    let again = keeper.begin(&all, NOW + 100 * DAY).unwrap().certificates;
    assert_eq!(again[0].certificate, made[0].certificate);
    let mut next = self::keeper(directory.path());
    next.take((&all, &[]), (&replaced(&made), &model), (start, NOW));
    let again = next.begin(&all, NOW + 100 * DAY).unwrap().certificates;
    assert_eq!(again[1].certificate, made[1].certificate);
    assert!(next.authority.is_none(), "nobody had to sign");
    // Two thirds later they are renewed, once.
    let mut renewed = Vec::new();
    for hour in 0..300 * 24 {
        let now = start + ASK_EVERY * hour;
        assert!(keeper.deadline().unwrap() <= now);
        for pem in keeper.turn(now, NOW + i64::from(hour) * 3600).certificates {
            renewed.push((hour / 24, names(&pem)[0].clone()));
        }
    }
    let b = "b.example".to_owned();
    assert_eq!(renewed, [(264, "localhost".to_owned()), (264, b)]);
    let status = keeper.status(NOW + 265 * DAY);
    assert!(status.iter().all(|it| it.self_signed && it.days_left > 390));
    assert_eq!(status[1].sites, ["b.example"]);
}

#[test]
fn files_that_are_replaced_take_the_place_of_what_was_read() {
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), "first");
    let model = model(directory.path(), FILES);
    let all = wanted(&model);
    assert_eq!(all.len(), 1, "two sites have one certificate");
    assert_eq!(all[0].sites, ["a.test", "b.test"]);
    let mut keeper = keeper(directory.path());
    assert!(keeper.begin(&all, NOW).unwrap().is_empty());
    let start = Instant::now();
    keeper.take((&all, &[]), (&replaced(&[]), &model), (start, NOW));
    let mut second = 0;
    let mut pass = |keeper: &mut Keeper, seconds: u32| {
        let mut all = Vec::new();
        for _ in 0..seconds {
            second += 1;
            all.extend(
                keeper
                    .turn(start + Duration::from_secs(second), NOW)
                    .certificates,
            );
        }
        all
    };
    assert!(pass(&mut keeper, 5).is_empty());
    put(directory.path(), "second");
    let new = pass(&mut keeper, 3);
    assert_eq!(new.len(), 1);
    let facts = new[0].facts().unwrap();
    assert_eq!(facts.all_names(), ["second"]);
    assert!(replaced(&new).made().is_ok());
    assert_eq!(keeper.status(NOW)[0].names, ["second"]);
    // A reload that read the same goes on, and one that is wrong stays unused.
    keeper.take((&all, &[]), (&replaced(&new), &model), (start, NOW));
    let key = std::fs::read(directory.path().join("a.key")).unwrap();
    put(directory.path(), "third");
    let third = std::fs::read(directory.path().join("a.key")).unwrap();
    std::fs::write(directory.path().join("a.key"), key).unwrap();
    assert!(pass(&mut keeper, 20).is_empty());
    let status = keeper.status(NOW);
    assert_eq!(status[0].names, ["second"]);
    assert!(status[0].trouble.contains("belongs to another certificate"));
    std::fs::write(directory.path().join("a.key"), third).unwrap();
    assert_eq!(pass(&mut keeper, 3).len(), 1);
    assert_eq!(keeper.status(NOW)[0].trouble, "");
    // Without certificates nobody is woken.
    keeper.take((&[], &[]), (&replaced(&[]), &model), (start, NOW));
    assert_eq!(keeper.deadline(), None);
}

/// A configuration with what is in its files, a keeper of it, and a clock.
struct World {
    directory: tempfile::TempDir,
    authority: Authority,
    model: Arc<Model>,
    keeper: Keeper,
    start: Instant,
    second: u64,
    now_s: i64,
}

impl World {
    /// `sites` as they are in the files that `prepare` puts there.
    fn new(sites: &str, prepare: impl FnOnce(&Path, &Authority)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("CA", &rcgen::PKCS_ECDSA_P256_SHA256);
        std::fs::write(directory.path().join("ca.pem"), &authority.pem).unwrap();
        prepare(directory.path(), &authority);
        let mut world = Self {
            model: model(directory.path(), sites),
            keeper: keeper(directory.path()),
            directory,
            authority,
            start: Instant::now(),
            second: 0,
            now_s: clock::unix_s(),
        };
        world.take(&Replaced::default());
        world
    }

    fn take(&mut self, replaced: &Replaced) {
        let (all, clients) = (wanted(&self.model), wanted_clients(&self.model));
        let now = (self.now(), self.now_s);
        self.keeper
            .take((&all, &clients), (replaced, &self.model), now);
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.second)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.directory.path().join(name), content).unwrap();
    }

    /// So many seconds go by.
    fn pass(&mut self, seconds: u64) -> Replaced {
        let mut all = Replaced::default();
        for _ in 0..seconds {
            self.second += 1;
            self.now_s += 1;
            all.put(self.keeper.turn(self.now(), self.now_s));
        }
        all
    }

    /// Until an authority has answered.
    fn answered(&mut self) -> Replaced {
        for _ in 0..1000 {
            let fds: Vec<_> = self.keeper.fds().collect();
            let mut fds: Vec<_> = (fds.iter())
                .map(|fd| PollFd::new(fd, PollFlags::IN))
                .collect();
            if !fds.is_empty() {
                poll(&mut fds, None).unwrap();
            }
            let new = self.keeper.turn(self.now(), self.now_s);
            if !new.is_empty() {
                return new;
            }
        }
        panic!("nobody has answered");
    }
}

/// A certificate of an authority with its key, in `a.pem` and `a.key`.
fn put_issued(directory: &Path, authority: &Authority, url: Option<&str>) -> Issued {
    let own = authority.issue(|params| {
        let responder = url.map(names_responder);
        params.custom_extensions.extend(responder);
    });
    let chain = format!("{}{}", own.pem, authority.pem);
    std::fs::write(directory.join("a.key"), own.key.serialize_pem()).unwrap();
    std::fs::write(directory.join("a.pem"), chain).unwrap();
    own
}

/// From and until so many hours from now.
fn list(authority: &Authority, (from, to): (i64, i64), revoked: &[u64]) -> String {
    let at = |hours: i64| {
        let seconds = (clock::unix_s() + hours * 3600).unsigned_abs();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
    };
    let params = rcgen::CertificateRevocationListParams {
        this_update: at(from),
        next_update: at(to),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: (revoked.iter())
            .map(|number| rcgen::RevokedCertParams {
                serial_number: rcgen::SerialNumber::from(*number),
                revocation_time: at(-240),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(&authority.issuer).unwrap().pem().unwrap()
}

const CLIENTS: &str = "[site.\"a.test\"]\nrespond = 204\ntls = { cert = \"a.pem\", key = \"a.key\" }\n\
     client_certificates = { ca = \"ca.pem\", crl = \"ca.crl\" }\n";

#[test]
fn lists_that_are_replaced_are_used_and_worse_ones_are_not() {
    let mut world = World::new(CLIENTS, |directory, authority| {
        put_issued(directory, authority, None);
        std::fs::write(directory.join("ca.crl"), list(authority, (-48, 120), &[7])).unwrap();
    });
    assert!(world.pass(5).is_empty());
    let trouble = |world: &World| world.keeper.clients_status(world.now_s)[0].trouble.clone();
    let new = list(&world.authority, (-24, 120), &[7, 8]);
    world.put("ca.crl", &new);
    let replaced = world.pass(3);
    assert_eq!(replaced.clients.len(), 1);
    assert_eq!(replaced.clients[0].lists[0], new);
    assert!(replaced.certificates.is_empty() && replaced.made().is_ok());
    // Nothing of these would do anybody good.
    let other = Authority::new("Other", &rcgen::PKCS_ECDSA_P256_SHA256);
    for (text, why) in [
        (String::new(), "holds no revocation list in PEM"),
        (
            "-----BEGIN X509 CRL-----\nnonsense".to_owned(),
            "is damaged",
        ),
        (
            list(&world.authority, (-48, 120), &[7]),
            "the one in use is newer",
        ),
        (list(&world.authority, (-23, -1), &[7]), "has ended on"),
        (
            list(&other, (-24, 120), &[]),
            "there is no list of the authority",
        ),
    ] {
        world.put("ca.crl", text);
        assert!(world.pass(3).is_empty(), "{why}");
        assert!(trouble(&world).contains(why), "{why}: {}", trouble(&world));
    }
    std::fs::remove_file(world.directory.path().join("ca.crl")).unwrap();
    assert!(world.pass(30).is_empty());
    // A master that takes over goes on with what is in use.
    let lists = |world: &World| world.keeper.clients_status(world.now_s)[0].lists.clone();
    let before = lists(&world);
    assert_eq!(before[0].days_left, Some(4));
    world.keeper = keeper(world.directory.path());
    world.take(&replaced);
    assert_eq!(lists(&world), before);
    world.put("ca.crl", &new);
    assert!(world.pass(5).is_empty() && trouble(&world).is_empty());
    // Another authority comes along with its list.
    world.put("ca.pem", format!("{}{}", world.authority.pem, other.pem));
    world.put("ca.crl", new + &list(&other, (-24, 72), &[]));
    let replaced = world.pass(3);
    assert_eq!(
        replaced.clients[0].authorities[0].matches("BEGIN").count(),
        2
    );
    let status = world.keeper.clients_status(world.now_s);
    assert_eq!(status[0].authorities.len(), 2);
    assert_eq!((status[0].lists.len(), status[0].required), (2, true));
}

#[test]
fn a_list_that_ends_is_warned_of_when_it_does() {
    let mut world = World::new(CLIENTS, |directory, authority| {
        put_issued(directory, authority, None);
        std::fs::write(directory.join("ca.crl"), list(authority, (-72, 120), &[7])).unwrap();
    });
    let issuer = world.model.sites[0].tls.as_ref().unwrap().clients.as_ref();
    let issuer = issuer.unwrap().lists()[0].issuer.clone();
    let id = wanted_clients(&world.model)[0].id.clone();
    let what = Ending::List(id, issuer);
    world.pass(1);
    let now_s = world.now_s;
    let (_, end) = world.keeper.endings(now_s)[&what];
    let told = |world: &mut World, at: i64| {
        let all = world.keeper.endings(at);
        world
            .keeper
            .warnings
            .due(all, at)
            .into_iter()
            .any(|(it, _)| it == what)
    };
    assert!(!told(&mut world, now_s), "five days are left");
    assert!(told(&mut world, end - DAY + 60) && !told(&mut world, end - DAY + 120));
    assert!(told(&mut world, end + 1));
    // It is asked in the second after the end, not within the next hour.
    let next = world.keeper.warn(end - 10);
    assert_eq!(next, Duration::from_secs(11));
}

const ASKED: &str = "[site.\"a.test\"]\nrespond = 204\n\
     tls = { cert = \"a.pem\", key = \"a.key\", ocsp = true }\n";

/// Answers every question with what it is given by then; gives its URL.
fn responder(answers: mpsc::Receiver<Vec<u8>>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok(answer) = answers.recv() {
            let (mut socket, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                let mut part = [0; 512];
                let bytes = socket.read(&mut part).unwrap();
                head.extend_from_slice(&part[..bytes]);
            }
            let ok = b"HTTP/1.0 200 OK\r\n\r\n";
            let _ = socket.write_all(&[&ok[..], &answer].concat());
            // What is unread at a close would take the answer along.
            let _ = socket.shutdown(std::net::Shutdown::Write);
            let _ = socket.read_to_end(&mut Vec::new());
        }
    });
    url
}

#[test]
fn an_authority_is_asked_and_what_it_says_goes_on() {
    let (answer, answers) = mpsc::channel();
    let url = responder(answers);
    let mut issued = None;
    let mut world = World::new(ASKED, |directory, authority| {
        issued = Some(put_issued(directory, authority, Some(&url)));
    });
    let issued = issued.unwrap();
    let ocsp = |world: &World| world.keeper.status(world.now_s)[0].ocsp.clone().unwrap();
    assert_eq!(
        (ocsp(&world).state, &*ocsp(&world).from),
        (OcspState::None, &*url)
    );
    assert!(world.pass(1).is_empty());
    let good = Said::good(&issued, &world.authority).response();
    answer.send(good.clone()).unwrap();
    let replaced = world.answered();
    assert_eq!(replaced.statements[0].response.as_ref(), Some(&good));
    let status = ocsp(&world);
    assert_eq!((status.state, &*status.trouble), (OcspState::Stapled, ""));
    assert_eq!(status.fetched, time(world.now_s));
    // A reload begins with it, a master that takes over asks nobody.
    let all = wanted(&world.model);
    let begin = world.keeper.begin(&all, world.now_s).unwrap();
    assert_eq!(begin.statements[0].response.as_ref(), Some(&good));
    world.keeper = keeper(world.directory.path());
    world.take(&begin);
    assert!(world.pass(5).is_empty());
    assert_eq!(
        (world.keeper.fds().count(), ocsp(&world).state),
        (0, OcspState::Stapled)
    );
    // Nobody tells clients what has ended.
    assert_eq!(
        world.keeper.status(world.now_s + 2 * DAY)[0]
            .ocsp
            .as_ref()
            .unwrap()
            .state,
        OcspState::None
    );
    // A certificate that takes the place of another one is asked about at once.
    let second = put_issued(world.directory.path(), &world.authority, Some(&url));
    let replaced = world.pass(3);
    assert_eq!(
        (replaced.certificates.len(), replaced.statements.len()),
        (1, 0)
    );
    assert_eq!(ocsp(&world).state, OcspState::None);
    let good = Said::good(&second, &world.authority).response();
    let revoked = Said {
        status: 0xa1,
        ..Said::good(&second, &world.authority)
    };
    let revoked = revoked.response();
    answer.send(good.clone()).unwrap();
    let replaced = world.answered();
    assert_eq!(replaced.statements[0].response, Some(good));
    // It is revoked.
    answer.send(revoked).unwrap();
    world.second += DAY.unsigned_abs() / 2;
    world.now_s += DAY / 2;
    let replaced = world.answered();
    assert_eq!(replaced.statements[0].response, None);
    assert_eq!(ocsp(&world).state, OcspState::Revoked);
    let id = &wanted(&world.model)[0].id;
    let ending = Ending::Revoked(id.clone());
    assert!(world.keeper.endings(world.now_s).contains_key(&ending));
    // One without a responder.
    put_issued(world.directory.path(), &world.authority, None);
    assert_eq!(world.pass(3).certificates.len(), 1);
    let status = ocsp(&world);
    assert!(
        status.trouble.contains("names no OCSP responder"),
        "{status:?}"
    );
    assert_eq!((status.state, &*status.from), (OcspState::None, ""));
    assert_eq!(world.keeper.asker.responders.next_due(), None);
}

#[test]
fn statements_in_files_follow_their_certificate() {
    const FILE: &str = "[site.\"a.test\"]\nrespond = 204\n\
         tls = { cert = \"a.pem\", key = \"a.key\", ocsp = \"a.ocsp\" }\n";
    let mut issued = None;
    let mut world = World::new(FILE, |directory, authority| {
        let own = put_issued(directory, authority, None);
        let good = Said::good(&own, authority).response();
        std::fs::write(directory.join("a.ocsp"), good).unwrap();
        issued = Some(own);
    });
    let issued = issued.unwrap();
    assert!(world.pass(5).is_empty());
    let ocsp = |world: &World| world.keeper.status(world.now_s)[0].ocsp.clone().unwrap();
    assert_eq!(ocsp(&world).state, OcspState::Stapled);
    let newer = Said {
        to: Some(world.now_s + 5 * DAY),
        ..Said::good(&issued, &world.authority)
    };
    let newer = newer.response();
    world.put("a.ocsp", &newer);
    let replaced = world.pass(3);
    assert_eq!(replaced.statements[0].response.as_ref(), Some(&newer));
    // What is broken changes nothing.
    world.put("a.ocsp", "nonsense");
    assert!(world.pass(3).is_empty());
    assert!(ocsp(&world).trouble.contains("holds no OCSP response"));
    assert_eq!(ocsp(&world).state, OcspState::Stapled);
    // One for the next certificate comes before it.
    let next = put_issued(world.directory.path(), &world.authority, None);
    let [chain, key] = ["a.pem", "a.key"].map(|name| {
        let path = world.directory.path().join(name);
        std::fs::read(&path).unwrap()
    });
    let good = Said::good(&next, &world.authority).response();
    world.put("a.ocsp", &good);
    world.put("a.pem", &chain);
    world.put("a.key", &key);
    let replaced = world.pass(6);
    assert_eq!(replaced.certificates.len(), 1);
    assert_eq!(replaced.statements[0].response.as_ref(), Some(&good));
    assert_eq!(
        (ocsp(&world).state, &*ocsp(&world).trouble),
        (OcspState::Stapled, "")
    );
    // A configuration that was read before has all of it.
    let replacements = replaced.made().unwrap();
    let identity = replacements.identities.values().next().unwrap();
    assert!(identity.staple(&good, world.now_s).is_ok());
    let revoked = Said {
        status: 0xa1,
        ..Said::good(&next, &world.authority)
    };
    world.put("a.ocsp", revoked.response());
    assert_eq!(world.pass(3).statements[0].response, None);
    assert_eq!(ocsp(&world).state, OcspState::Revoked);
}
