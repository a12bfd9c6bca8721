//! Groups on a real core, without a connection: picks, limits, waits and verdicts.

use std::num::NonZeroU32;

use super::*;
use crate::config::model::{Queue, ServerAddr, Upstream, UpstreamServer};
use crate::runtime::engine::caps::{EngineChoice, Selection};
use crate::upstream::health::FailureKind;

struct Bench {
    core: Core,
    wake: Arc<Wake>,
}

impl Bench {
    fn new() -> Self {
        let wake = Wake::new().unwrap();
        let selection = Selection::choose(EngineChoice::Epoll).unwrap();
        let core = selection.core(Arc::clone(&wake), None).unwrap();
        Self { core, wake }
    }

    fn group(&self, roster: &Arc<Roster>, before: Option<&Group>) -> Rc<Group> {
        let share = Share { index: 0, of: 1 };
        Group::new(&self.core, &self.wake, roster, (share, 7), before)
    }

    /// Runs a future as a task to its end.
    fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let told = Rc::clone(&result);
        self.core.spawn(async move {
            let value = future.await;
            *told.borrow_mut() = Some(value);
        });
        let until = Instant::now() + Duration::from_secs(20);
        let is_done = || result.borrow().is_some() || Instant::now() > until;
        self.core.run_until(is_done).unwrap();
        result.take().expect("it ends")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.core.shut_down();
    }
}

fn upstream(ports: &[u16], change: impl Fn(&mut Upstream)) -> Arc<Upstream> {
    let server = |port: &u16| UpstreamServer::new(ServerAddr::Ip(([127, 0, 0, 1], *port).into()));
    let mut upstream = Upstream::new("app", ports.iter().map(server).collect());
    change(&mut upstream);
    Arc::new(upstream)
}

fn claim(group: &Rc<Group>, visited: &mut Visited) -> Result<Claim, Survey> {
    group.claim_now(None, visited)
}

/// One figure of each server of a group, in their order.
fn of_servers<T>(group: &Group, figure: impl Fn(&ServerAccount) -> T) -> Vec<T> {
    group.account().servers.iter().map(figure).collect()
}

#[test]
fn requests_take_turns_and_count_until_they_end() {
    let bench = Bench::new();
    let roster = Roster::new(&upstream(&[1, 2], |_| {}), Instant::now());
    let group = bench.group(&roster, None);
    let claims: Vec<Claim> = (0..4)
        .map(|_| claim(&group, &mut Visited::default()).unwrap())
        .collect();
    let in_flight = |group: &Group| of_servers(group, |it| it.in_flight);
    assert_eq!(in_flight(&group), [2, 2]);
    drop(claims);
    assert_eq!(in_flight(&group), [0, 0]);
}

#[test]
fn a_visited_server_is_not_asked_again_until_the_list_changes() {
    let bench = Bench::new();
    let now = Instant::now();
    let roster = Roster::new(&upstream(&[1, 2], |_| {}), now);
    let group = bench.group(&roster, None);
    let mut visited = Visited::default();
    let first = claim(&group, &mut visited).unwrap();
    visited.add(&first);
    assert!(group.has_other(&visited));
    let second = claim(&group, &mut visited).unwrap();
    assert_ne!(first.address(), second.address());
    visited.add(&second);
    assert!(!group.has_other(&visited));
    assert_eq!(claim(&group, &mut visited).err(), Some(Survey::Nobody));
}

#[test]
fn failures_put_a_server_out_and_never_the_last_one() {
    let bench = Bench::new();
    let roster = Roster::new(&upstream(&[1, 2], |_| {}), Instant::now());
    let group = bench.group(&roster, None);
    let failure = Outcome::Failure(FailureKind::Refused);
    let fail = |address: &Address| {
        for _ in 0..40 {
            let claim = claim(&group, &mut Visited::default()).unwrap();
            if claim.address() == address {
                claim.record(failure, Duration::ZERO);
            }
        }
    };
    let one = Address::Tcp(([127, 0, 0, 1], 1).into());
    let other = Address::Tcp(([127, 0, 0, 1], 2).into());
    fail(&one);
    for _ in 0..4 {
        let claim = claim(&group, &mut Visited::default()).unwrap();
        assert_eq!(claim.address(), &other);
    }
    fail(&other);
    assert!(claim(&group, &mut Visited::default()).is_ok());
    let failures = of_servers(&group, |it| it.failures);
    assert_eq!(failures[0], 5, "no more requests came to it");
}

#[test]
fn who_finds_all_full_waits_for_a_place_and_gets_it() {
    let bench = Bench::new();
    let settings = upstream(&[1], |upstream| {
        upstream.servers[0].max_conns = NonZeroU32::new(1);
        upstream.queue = Queue {
            size: 1,
            timeout: Duration::from_secs(10),
        };
    });
    let roster = Roster::new(&settings, Instant::now());
    let (group, core) = (bench.group(&roster, None), bench.core.clone());
    let held = claim(&group, &mut Visited::default()).unwrap();
    let (first, second) = bench.run(async move {
        let results = Rc::new(RefCell::new(Vec::new()));
        for _ in 0..2 {
            let (group, core) = (Rc::clone(&group), core.clone());
            let results = Rc::clone(&results);
            core.clone().spawn(async move {
                let mut timer = Timer::new(&core);
                let claimed = group.claim(&mut timer, None, &mut Visited::default()).await;
                results.borrow_mut().push(claimed.map(drop));
            });
        }
        core.yield_turn().await;
        core.yield_turn().await;
        let full = results.borrow().clone();
        drop(held);
        while results.borrow().len() < 2 {
            core.yield_turn().await;
        }
        (full, results.borrow().clone())
    });
    assert_eq!(
        first,
        [Err(NoServer::LineFull)],
        "one waits, one is refused"
    );
    assert_eq!(second, [Err(NoServer::LineFull), Ok(())]);
    let limit = roster.members().list[0].limit.clone().unwrap();
    assert_eq!((limit.in_flight(), roster.line().waiting()), (0, 0));
}

#[test]
fn who_waits_in_vain_is_told_and_leaves_no_trace() {
    let bench = Bench::new();
    let settings = upstream(&[1], |upstream| {
        upstream.servers[0].max_conns = NonZeroU32::new(1);
        upstream.queue.timeout = Duration::from_millis(20);
    });
    let roster = Roster::new(&settings, Instant::now());
    let (group, core) = (bench.group(&roster, None), bench.core.clone());
    let held = claim(&group, &mut Visited::default()).unwrap();
    let error = bench.run(async move {
        let mut timer = Timer::new(&core);
        let claimed = group.claim(&mut timer, None, &mut Visited::default()).await;
        claimed.map(drop)
    });
    assert_eq!(error, Err(NoServer::WaitedInVain));
    drop(held);
    let limit = roster.members().list[0].limit.clone().unwrap();
    assert_eq!((limit.in_flight(), roster.line().waiting()), (0, 0));
}

#[test]
fn a_group_sees_other_servers_and_keeps_what_it_knows_of_those_that_stay() {
    let bench = Bench::new();
    let now = Instant::now();
    let before = Roster::new(&upstream(&[1, 2], |_| {}), now);
    let group = bench.group(&before, None);
    let held: Vec<Claim> = (0..2)
        .map(|_| claim(&group, &mut Visited::default()).unwrap())
        .collect();
    let after = Roster::succeeding(&upstream(&[2, 3], |_| {}), &before, now);
    let next = bench.group(&after, Some(&group));
    let in_flight = of_servers(&next, |it| it.in_flight);
    assert_eq!(in_flight, [1, 0], "the request to 2 is still on its way");
    drop(held);
    let in_flight = of_servers(&next, |it| it.in_flight);
    assert_eq!(in_flight, [0, 0]);
    after
        .set_admin("127.0.0.1:2", Standing::Drain, now)
        .unwrap();
    let last = claim(&next, &mut Visited::default()).unwrap();
    assert_eq!(last.address().to_string(), "127.0.0.1:3");
}
