//! The keeper with virtual time, real files and an authority of its own.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::certificates::Places;
use crate::config::{self, sources::Input};

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
    let made = keeper.make(&all, NOW).unwrap();
    let names = |pem: &Pem| pem.facts().unwrap().all_names();
    assert_eq!(names(&made[1]), ["b.example", "*.b.example"]);
    for name in ["localhost", "127.0.0.1", "::1", "127.0.0.7"] {
        assert!(names(&made[0]).contains(&name.to_owned()), "{name}");
    }
    assert_eq!(identities(&made).unwrap().len(), 2);
    let start = Instant::now();
    keeper.take(&all, &made, &model, start);
    // A reload, and a master that takes over, make no others.
    let again = keeper.make(&all, NOW + 100 * DAY).unwrap();
    assert_eq!(again[0].certificate, made[0].certificate);
    let mut next = self::keeper(directory.path());
    next.take(&all, &made, &model, start);
    let again = next.make(&all, NOW + 100 * DAY).unwrap();
    assert_eq!(again[1].certificate, made[1].certificate);
    assert!(next.authority.is_none(), "nobody had to sign");
    // Two thirds later they are renewed, once.
    let mut renewed = Vec::new();
    for hour in 0..300 * 24 {
        let now = start + ASK_EVERY * hour;
        assert!(keeper.deadline().unwrap() <= now);
        for pem in keeper.turn(now, NOW + i64::from(hour) * 3600) {
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
    assert!(keeper.make(&all, NOW).unwrap().is_empty());
    let start = Instant::now();
    keeper.take(&all, &[], &model, start);
    let mut second = 0;
    let mut pass = |keeper: &mut Keeper, seconds: u32| {
        let mut all = Vec::new();
        for _ in 0..seconds {
            second += 1;
            all.extend(keeper.turn(start + Duration::from_secs(second), NOW));
        }
        all
    };
    assert!(pass(&mut keeper, 5).is_empty());
    put(directory.path(), "second");
    let new = pass(&mut keeper, 3);
    assert_eq!(new.len(), 1);
    let facts = new[0].facts().unwrap();
    assert_eq!(facts.all_names(), ["second"]);
    assert!(identities(&new).is_ok());
    assert_eq!(keeper.status(NOW)[0].names, ["second"]);
    // A reload that read the same goes on, and one that is wrong stays unused.
    keeper.take(&all, &new, &model, start);
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
    keeper.take(&[], &[], &model, start);
    assert_eq!(keeper.deadline(), None);
}
