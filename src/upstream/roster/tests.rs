//! Servers that come, go and are spoken of.

use super::*;

fn upstream(servers: &[&str]) -> Arc<Upstream> {
    let address = |text: &&str| match text.parse() {
        Ok(address) => ServerAddr::Ip(address),
        Err(_) => {
            let (host, port) = text.rsplit_once(':').unwrap();
            ServerAddr::Name(host.into(), port.parse().unwrap())
        }
    };
    let servers = servers.iter().map(address).map(UpstreamServer::new);
    Arc::new(Upstream::new("app", servers.collect()))
}

fn resolved(address: &str) -> Resolved {
    Resolved {
        address: address.parse().unwrap(),
        weight: 1,
        is_backup: false,
    }
}

/// Labels, each with what the server takes.
fn seen(roster: &Roster, now: Instant) -> Vec<(String, Standing)> {
    let members = roster.members();
    let standing = |at| members.board.standing(at, now).0;
    let list = members.list.iter().enumerate();
    list.map(|(at, member)| (member.label.to_string(), standing(at)))
        .collect()
}

#[test]
fn a_name_is_down_until_it_has_addresses_and_keeps_the_last_ones() {
    let now = Instant::now();
    let roster = Roster::new(&upstream(&["10.0.0.1:80", "app.internal:81"]), now);
    let up = |text: &str| (text.to_owned(), Standing::Up);
    let first = ("app.internal:81".to_owned(), Standing::Down);
    assert_eq!(seen(&roster, now), [up("10.0.0.1:80"), first]);
    let before = roster.version();
    let two = [resolved("10.0.0.9:81"), resolved("10.0.0.8:81")];
    assert!(roster.resolved(1, &two, now));
    let both = [
        up("10.0.0.1:80"),
        up("app.internal:81 (10.0.0.8:81)"),
        up("app.internal:81 (10.0.0.9:81)"),
    ];
    assert_eq!(seen(&roster, now), both);
    assert!(roster.version() > before);
    let last = roster.version();
    assert!(
        !roster.resolved(1, &[two[1], two[0], two[0]], now),
        "the same"
    );
    assert!(!roster.resolved(1, &[], now), "no answer");
    assert_eq!((seen(&roster, now), roster.version()), (both.into(), last));
}

#[test]
fn what_is_known_of_a_server_outlives_resolutions_and_reloads() {
    let now = Instant::now();
    let roster = Roster::new(&upstream(&["10.0.0.1:80", "app.internal:81"]), now);
    roster.resolved(1, &[resolved("10.0.0.8:81")], now);
    assert_eq!(
        roster.set_admin("app.internal:81", Standing::Drain, now),
        Ok(1)
    );
    let probe = (Judge::Probe, FailureKind::Refused);
    roster.members().board.condemn(0, probe.0, probe.1, now);
    roster.resolved(1, &[resolved("10.0.0.8:81"), resolved("10.0.0.9:81")], now);
    let standings = |roster: &Roster| -> Vec<Standing> {
        seen(roster, now).into_iter().map(|it| it.1).collect()
    };
    let (down, drain) = (Standing::Down, Standing::Drain);
    assert_eq!(
        standings(&roster),
        [down, drain, drain],
        "new addresses, too"
    );
    let next = upstream(&["10.0.0.2:80", "app.internal:81", "10.0.0.1:80"]);
    let rosters = Rosters::new(&[Arc::clone(roster.settings())], now);
    assert!(!Arc::ptr_eq(&rosters.list()[0], &roster));
    let after = Roster::succeeding(&next, &roster, now);
    assert_eq!(standings(&after), [Standing::Up, drain, drain, down]);
    // The configuration says another thing than before: it is the last one who spoke.
    let mut other = Upstream::clone(&next);
    other.servers[1].state = ServerState::Down;
    let last = Roster::succeeding(&Arc::new(other), &after, now);
    assert_eq!(standings(&last), [Standing::Up, down, down, down]);
}

#[test]
fn a_reload_without_a_change_goes_on_with_the_same() {
    let now = Instant::now();
    let one = upstream(&["10.0.0.1:80"]);
    let first = Rosters::new(&[Arc::clone(&one)], now);
    let same = Rosters::succeeding(&[upstream(&["10.0.0.1:80"])], &first, now);
    assert!(Arc::ptr_eq(&first.list()[0], &same.list()[0]));
    let other = Rosters::succeeding(&[upstream(&["10.0.0.2:80"])], &first, now);
    assert!(!Arc::ptr_eq(&first.list()[0], &other.list()[0]));
    assert!(other.find("app").is_some() && other.find("shop").is_none());
}

#[test]
fn the_administrator_is_told_what_there_is() {
    let now = Instant::now();
    let roster = Roster::new(&upstream(&["10.0.0.1:80", "10.0.0.2:80"]), now);
    assert_eq!(roster.set_admin("10.0.0.2:80", Standing::Down, now), Ok(1));
    let error = roster.set_admin("10.0.0.3:80", Standing::Down, now);
    let text = error.unwrap_err().to_string();
    assert_eq!(
        text,
        "no server `10.0.0.3:80`; there are 10.0.0.1:80, 10.0.0.2:80"
    );
    let roster = Roster::new(&upstream(&["app.internal:81"]), now);
    roster.resolved(0, &[resolved("10.0.0.8:81")], now);
    // It would be forgotten with the next answer of the resolver.
    assert!(
        roster
            .set_admin("10.0.0.8:81", Standing::Down, now)
            .is_err()
    );
}

#[test]
fn all_words_together_take_the_place_of_those_before() {
    let now = Instant::now();
    let roster = Roster::new(&upstream(&["10.0.0.1:80", "10.0.0.2:80"]), now);
    let board = |at: usize| roster.members().board.state(at, now);
    roster
        .set_admin("10.0.0.1:80", Standing::Down, now)
        .unwrap();
    roster.heed([("10.0.0.2:80", Standing::Drain)].into_iter(), now);
    assert_eq!(board(0).standing, Standing::Up, "as the configuration says");
    assert_eq!(board(1).standing, Standing::Drain);
    // What stands isn't said again: suspicion that a word would have ended goes on.
    let limits = super::super::health::EjectionLimits {
        first: std::time::Duration::from_secs(10),
        longest: std::time::Duration::from_secs(10),
        percent_max: 100,
    };
    let roster = Roster::new(&upstream(&["10.0.0.1:80", "10.0.0.2:80"]), now);
    let reason = super::super::health::Reason {
        finder: super::super::health::Finder::InARow,
        kind: FailureKind::Refused,
    };
    let board = &roster.members().board;
    board.eject(0, reason, &limits, now);
    roster.heed(std::iter::empty(), now);
    assert!(board.state(0, now).ejected_until.is_some());
    roster.set_admin("10.0.0.1:80", Standing::Up, now).unwrap();
    assert!(board.state(0, now).ejected_until.is_none());
}

#[test]
fn a_limit_is_exact_and_addresses_are_bounded() {
    let limit = Limit::new(NonZeroU32::new(2).unwrap());
    assert!(limit.take() && limit.take() && !limit.take());
    limit.give_back();
    assert!(limit.take());
    let now = Instant::now();
    let roster = Roster::new(&upstream(&["a:1"]), now);
    let many: Vec<_> = (0..200)
        .map(|at| resolved(&format!("10.0.0.{at}:1")))
        .collect();
    roster.resolved(0, &many, now);
    assert_eq!(roster.members().list.len(), ADDRESSES_MAX);
}
