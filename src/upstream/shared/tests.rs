//! The words in virtual time, under threads, and in the memory model.

use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);
const LIMITS: EjectionLimits = EjectionLimits {
    first: Duration::from_secs(10),
    longest: Duration::from_secs(60),
    percent_max: 50,
};
const REASON: Reason = Reason {
    finder: Finder::InARow,
    kind: FailureKind::Status(502),
};

fn standings(shared: &Shared, now: Instant) -> Vec<Standing> {
    (0..shared.len())
        .map(|index| shared.standing(index, now).0)
        .collect()
}

#[test]
fn is_out_for_a_time_that_grows_and_comes_back_with_a_slow_start() {
    let epoch = Instant::now();
    let shared = Shared::new(2, epoch);
    assert_eq!(shared.standing(0, epoch), (Standing::Up, None));
    let mut now = epoch;
    for seconds in [10, 20, 40, 60, 60] {
        let until = now + seconds * S;
        let ejection = shared.eject(0, REASON, &LIMITS, now);
        assert_eq!(ejection, Ejection::Until(until));
        assert_eq!(shared.eject(0, REASON, &LIMITS, now), Ejection::AlreadyOut);
        let state = shared.state(0, now);
        assert_eq!(state.standing, Standing::Down);
        assert_eq!((state.ejected_until, state.recovered), (Some(until), None));
        assert_eq!(state.reason, Some(REASON));
        now = until;
        assert_eq!(shared.standing(0, now), (Standing::Up, Some(until)));
    }
    // Long well: forgiven.
    now += 600 * S;
    let ejection = shared.eject(0, REASON, &LIMITS, now);
    assert_eq!(ejection, Ejection::Until(now + 10 * S));
}

#[test]
fn suspicion_takes_its_share_and_never_the_last_one() {
    let now = Instant::now();
    let shared = Shared::new(5, now);
    let eject = |index| shared.eject(index, REASON, &LIMITS, now);
    assert!(matches!(
        (eject(0), eject(1)),
        (Ejection::Until(_), Ejection::Until(_))
    ));
    assert_eq!(eject(2), Ejection::NotAllowed);
    // Two are out by suspicion, two go by probe: the last one's failures change nothing.
    for index in [2, 3] {
        shared.condemn(index, Judge::Probe, FailureKind::Refused, now);
    }
    assert_eq!(eject(4), Ejection::NotAllowed);
    let alone = Shared::new(1, now);
    assert_eq!(alone.eject(0, REASON, &LIMITS, now), Ejection::NotAllowed);
}

#[test]
fn when_the_last_one_is_known_to_fail_suspects_are_pardoned() {
    let now = Instant::now();
    for how in 0..3 {
        let shared = Shared::new(2, now);
        shared.eject(0, REASON, &LIMITS, now);
        match how {
            0 => shared.condemn(1, Judge::Probe, FailureKind::Timeout, now),
            1 => shared.condemn(1, Judge::Resolver, FailureKind::Unresolved, now),
            _ => shared.set_admin(1, Standing::Drain, now),
        };
        assert_eq!(shared.standing(0, now), (Standing::Up, Some(now)));
    }
}

#[test]
fn each_judge_has_to_acquit() {
    let now = Instant::now();
    let shared = Shared::new(2, now);
    assert!(shared.condemn(0, Judge::Probe, FailureKind::Refused, now));
    assert!(
        !shared.condemn(0, Judge::Probe, FailureKind::Timeout, now),
        "no news"
    );
    assert!(shared.condemn(0, Judge::Resolver, FailureKind::Unresolved, now));
    let reason = shared.state(0, now).reason.unwrap();
    assert_eq!(reason.to_string(), "its name has no address");
    assert!(shared.acquit(0, Judge::Probe, now + S));
    assert_eq!(shared.standing(0, now + S).0, Standing::Down);
    assert!(shared.acquit(0, Judge::Resolver, now + 2 * S));
    assert!(!shared.acquit(0, Judge::Resolver, now + 3 * S));
    assert_eq!(
        shared.standing(0, now + 9 * S),
        (Standing::Up, Some(now + 2 * S))
    );
}

#[test]
fn the_administrator_stands_above_health() {
    let now = Instant::now();
    let shared = Shared::new(3, now);
    assert!(shared.set_admin(0, Standing::Drain, now));
    assert!(!shared.set_admin(0, Standing::Drain, now), "no news");
    assert!(shared.set_admin(1, Standing::Down, now));
    assert_eq!(
        standings(&shared, now),
        [Standing::Drain, Standing::Down, Standing::Up]
    );
    assert_eq!(shared.eject(0, REASON, &LIMITS, now), Ejection::NotAllowed);
    assert_eq!(shared.eject(1, REASON, &LIMITS, now), Ejection::AlreadyOut);
    assert_eq!(shared.eject(2, REASON, &LIMITS, now), Ejection::NotAllowed);
    // Back from drain it is warm; back from down it isn't.
    shared.set_admin(0, Standing::Up, now + S);
    shared.set_admin(1, Standing::Up, now + S);
    assert_eq!(shared.standing(0, now + S), (Standing::Up, None));
    assert_eq!(shared.standing(1, now + S), (Standing::Up, Some(now + S)));
    // The word ends suspicion, too, but not what a probe knows.
    shared.eject(0, REASON, &LIMITS, now + S);
    assert!(shared.set_admin(0, Standing::Up, now + 2 * S));
    assert_eq!(
        shared.standing(0, now + 2 * S),
        (Standing::Up, Some(now + 2 * S))
    );
    shared.condemn(0, Judge::Probe, FailureKind::Refused, now + 2 * S);
    shared.set_admin(0, Standing::Up, now + 3 * S);
    assert_eq!(shared.standing(0, now + 3 * S).0, Standing::Down);
    assert_eq!(shared.state(0, now + 3 * S).admin, Standing::Up);
}

#[test]
fn a_reload_keeps_what_is_known_of_the_servers_that_stay() {
    let now = Instant::now();
    let before = Shared::new(3, now);
    before.set_admin(0, Standing::Drain, now);
    before.eject(2, REASON, &LIMITS, now);
    let after = Shared::succeeding(&before, &[Some(2), None, Some(0), Some(9)]);
    let expected = [Standing::Down, Standing::Up, Standing::Drain, Standing::Up];
    assert_eq!(standings(&after, now + S), expected);
    assert_eq!(after.state(0, now), before.state(2, now));
}

/// Threads of the machine, against what the model has left out: cores that all find all servers ill.
#[test]
fn of_many_cores_one_ejects_and_most_servers_stay() {
    let now = Instant::now();
    for _ in 0..200 {
        let shared = Shared::new(4, now);
        let eject = || {
            let out = (0..4).map(|index| shared.eject(index, REASON, &LIMITS, now));
            out.filter(|ejection| matches!(ejection, Ejection::Until(_)))
                .count()
        };
        let won: usize = std::thread::scope(|scope| {
            let cores: Vec<_> = (0..4).map(|_| scope.spawn(eject)).collect();
            cores.into_iter().map(|core| core.join().unwrap()).sum()
        });
        let out = standings(&shared, now)
            .iter()
            .filter(|s| **s == Standing::Down)
            .count();
        assert_eq!(won, out, "each ejection was won once");
        assert!((1..=2).contains(&out), "{out} of 4 are out");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    Eject(usize),
    Condemn(usize, bool),
    Acquit(usize, bool),
    Admin(usize, u8),
}

fn event() -> impl Strategy<Value = Event> {
    let server = 0..6_usize;
    prop_oneof![
        2 => (0..30_000_u64).prop_map(Event::Pass),
        6 => server.clone().prop_map(Event::Eject),
        2 => (server.clone(), any::<bool>()).prop_map(|(s, j)| Event::Condemn(s, j)),
        2 => (server.clone(), any::<bool>()).prop_map(|(s, j)| Event::Acquit(s, j)),
        1 => (server, 0..3_u8).prop_map(|(s, a)| Event::Admin(s, a)),
    ]
}

proptest! {
    #[test]
    fn ejection_never_takes_all(
        servers in 1..6_usize,
        percent_max in 0..120_u32,
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut now = Instant::now();
        let shared = Shared::new(servers, now);
        let limits = EjectionLimits { percent_max, ..LIMITS };
        let judge = |probe| if probe { Judge::Probe } else { Judge::Resolver };
        for event in events {
            match event {
                Event::Pass(millis) => now += Duration::from_millis(millis),
                Event::Eject(server) => {
                    let before = standings(&shared, now);
                    let all = (0..servers).filter(|s| shared.state(*s, now).admin == Standing::Up);
                    let all = all.count() as u64;
                    if let Ejection::Until(until) = shared.eject(server % servers, REASON, &limits, now) {
                        prop_assert!(until > now && until <= now + LIMITS.longest);
                        prop_assert_eq!(before[server % servers], Standing::Up);
                        let out = (0..servers)
                            .filter(|s| shared.state(*s, now).ejected_until.is_some())
                            .filter(|s| shared.state(*s, now).admin == Standing::Up)
                            .count() as u64;
                        let most = (all * u64::from(percent_max.min(100)) / 100).max(1);
                        prop_assert!(percent_max > 0 && out <= most, "{} of {} out", out, all);
                        prop_assert!(standings(&shared, now).contains(&Standing::Up));
                    }
                }
                Event::Condemn(server, probe) => {
                    shared.condemn(server % servers, judge(probe), FailureKind::Reset, now);
                }
                Event::Acquit(server, probe) => {
                    shared.acquit(server % servers, judge(probe), now);
                }
                Event::Admin(server, admin) => {
                    let admin = [Standing::Up, Standing::Drain, Standing::Down][usize::from(admin)];
                    shared.set_admin(server % servers, admin, now);
                    prop_assert_eq!(shared.state(server % servers, now).admin, admin);
                }
            }
            // Whatever happened: nobody is out by suspicion alone while no other one is in.
            let usable = standings(&shared, now).contains(&Standing::Up);
            let suspected = (0..servers).any(|server| {
                Word(shared.board.words[server].load(Ordering::Relaxed)).is_only_suspected(shared.ms(now))
            });
            prop_assert!(usable || !suspected);
        }
    }
}

/// The protocol under every order that the memory model allows, with up to three preemptions.
mod model {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use loom::thread;

    use super::super::board::{Board, Cell, Flag};
    use super::*;

    impl Cell for AtomicU64 {
        fn read(&self) -> u64 {
            self.load(Ordering::Acquire)
        }

        fn read_last(&self) -> u64 {
            self.fetch_or(0, Ordering::AcqRel)
        }

        fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
            self.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
        }
    }

    /// Looks at the other words without a read-modify-write.
    #[derive(Default)]
    struct Careless(AtomicU64);

    impl Cell for Careless {
        fn read(&self) -> u64 {
            self.0.read()
        }

        fn read_last(&self) -> u64 {
            self.0.read()
        }

        fn exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
            self.0.exchange(old, new)
        }
    }

    impl Flag for AtomicBool {
        fn take(&self) -> bool {
            self.swap(true, Ordering::Acquire)
        }

        fn give_back(&self) {
            self.store(false, Ordering::Release);
        }
    }

    /// Lets everyone decide at the same time.
    #[derive(Default)]
    struct NoFlag;

    impl Flag for NoFlag {
        fn take(&self) -> bool {
            false
        }

        fn give_back(&self) {}
    }

    const NOW_MS: u64 = 1_000;

    fn check<C, F>(first: fn(&Board<C, F>), second: fn(&Board<C, F>))
    where
        C: Cell + Send + Sync + 'static,
        F: Flag + Send + Sync + 'static,
    {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let board = Arc::new(Board::<C, F>::new(2));
            let other = board.clone();
            let core = thread::spawn(move || first(&other));
            second(&board);
            core.join().unwrap();
            let takes_requests =
                |cell: &&C| Word(cell.read_last()).standing(NOW_MS) == Standing::Up;
            let left = board.words.iter().filter(takes_requests).count();
            assert!(left > 0, "nobody is left");
        });
    }

    fn eject<C: Cell, F: Flag, const INDEX: usize>(board: &Board<C, F>) {
        let _ = board.eject(INDEX, REASON, &LIMITS, NOW_MS);
    }

    fn condemn<C: Cell, F: Flag>(board: &Board<C, F>) {
        board.condemn(1, Judge::Probe, FailureKind::Refused, NOW_MS);
    }

    #[test]
    fn two_cores_that_suspect_different_servers_leave_one() {
        check::<AtomicU64, AtomicBool>(eject::<_, _, 0>, eject::<_, _, 1>);
    }

    #[test]
    fn a_core_that_suspects_and_a_probe_that_knows_leave_one() {
        check::<AtomicU64, AtomicBool>(eject::<_, _, 0>, condemn);
    }

    #[test]
    #[should_panic(expected = "nobody is left")]
    fn the_model_finds_what_plain_reads_would_miss() {
        check::<Careless, AtomicBool>(eject::<_, _, 0>, condemn);
    }

    #[test]
    #[should_panic(expected = "more than the share")]
    fn the_model_finds_what_counting_without_the_flag_would_miss() {
        share::<NoFlag>();
    }

    #[test]
    fn counting_with_the_flag_keeps_the_share() {
        share::<AtomicBool>();
    }

    /// Both cores put one out of two: whatever is pardoned later, only one may ever succeed.
    fn share<F: Flag + Send + Sync + 'static>() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let board = Arc::new(Board::<AtomicU64, F>::new(2));
            let other = board.clone();
            let core = thread::spawn(move || other.eject(0, REASON, &LIMITS, NOW_MS).is_ok());
            let mine = board.eject(1, REASON, &LIMITS, NOW_MS).is_ok();
            let both = core.join().unwrap() && mine;
            assert!(!both, "more than the share");
        });
    }
}
