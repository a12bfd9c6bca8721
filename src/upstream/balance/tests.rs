//! The laws of the policies: shares, smoothness, disruption, bounds, and the rules that hold for all.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const SECRET: &[u8] = b"0123456789abcdef";

const POLICIES: [Policy; 6] = [
    Policy::RoundRobin,
    Policy::LeastConnections,
    Policy::PowerOfTwo,
    Policy::Random,
    Policy::Hash {
        load_percent_max: None,
    },
    Policy::Hash {
        load_percent_max: NonZeroU32::new(125),
    },
];

fn server(number: usize, weight: u16) -> ServerView {
    ServerView {
        id: server_id(&format!("10.0.0.{number}:3000")),
        weight,
        is_backup: false,
        standing: Standing::Up,
        in_flight: 0,
        in_flight_max: None,
        latency: PeakEwma::default(),
        recovered: None,
    }
}

fn servers(weights: &[u16]) -> Vec<ServerView> {
    let numbered = weights.iter().enumerate();
    numbered
        .map(|(number, weight)| server(number, *weight))
        .collect()
}

fn picker(policy: Policy) -> Picker {
    Picker::new(policy, Duration::ZERO, 42)
}

/// How often each server is picked for keys 0, 1, 2, … while nothing is in flight.
fn tally(policy: Policy, servers: &[ServerView], picks: u32) -> Vec<u32> {
    let (mut picker, now) = (picker(policy), Instant::now());
    let mut tally = vec![0; servers.len()];
    for pick in 0..picks {
        let key = pick.to_be_bytes();
        let index = picker.pick(servers, Some(&key), now, &Tried::default());
        tally[index.unwrap()] += 1;
    }
    tally
}

/// Keeps requests in flight: one begins at each step, and the oldest of `open` ends.
fn run(picker: &mut Picker, servers: &mut [ServerView], open: usize, picks: u32) -> Vec<u32> {
    let (mut tally, now) = (vec![0; servers.len()], Instant::now());
    let mut flying = std::collections::VecDeque::new();
    for pick in 0..picks {
        if flying.len() == open {
            let done: usize = flying.pop_front().unwrap();
            servers[done].in_flight -= 1;
        }
        let key = pick.to_be_bytes();
        let picked = picker.pick(servers, Some(&key), now, &Tried::default());
        let index = picked.unwrap();
        servers[index].in_flight += 1;
        flying.push_back(index);
        tally[index] += 1;
    }
    tally
}

#[test]
fn round_robin_is_smooth() {
    let (mut picker, now) = (Picker::new(Policy::RoundRobin, S, 0), Instant::now());
    let servers = servers(&[5, 1, 1]);
    let turns = (0..14).map(|_| picker.pick(&servers, None, now, &Tried::default()).unwrap());
    let turns: String = turns.map(|index| ["a", "b", "c"][index]).collect();
    assert_eq!(turns, "aabacaaaabacaa", "as nginx's documentation has it");
}

#[test]
fn cores_begin_at_different_servers() {
    let (servers, now) = (servers(&[1, 1, 1, 1]), Instant::now());
    let first = |seed| {
        let mut picker = Picker::new(Policy::RoundRobin, S, seed);
        picker.pick(&servers, None, now, &Tried::default())
    };
    let firsts: std::collections::BTreeSet<_> = (0..4).map(first).collect();
    assert_eq!(firsts.len(), 4);
}

#[test]
fn idle_servers_get_shares_by_weight() {
    let servers = servers(&[1, 2, 5]);
    for policy in POLICIES {
        let tally = tally(policy, &servers, 24_000);
        for (got, weight) in tally.iter().zip([1, 2, 5]) {
            let expected = 3_000 * weight;
            let tolerance = expected / 12;
            assert!(got.abs_diff(expected) < tolerance, "{policy:?}: {tally:?}");
        }
    }
}

#[test]
fn a_busy_upstream_is_loaded_by_weight() {
    for policy in [Policy::LeastConnections, Policy::RoundRobin] {
        let mut servers = servers(&[1, 2, 5]);
        run(&mut picker(policy), &mut servers, 80, 4_000);
        let flying: Vec<u32> = servers.iter().map(|server| server.in_flight).collect();
        for (got, expected) in flying.iter().zip([10_u32, 20, 50]) {
            assert!(got.abs_diff(expected) <= 1, "{policy:?}: {flying:?}");
        }
    }
}

#[test]
fn power_of_two_loads_equally_fast_servers_by_weight() {
    let (mut servers, now) = (servers(&[1, 2, 5]), Instant::now());
    for server in &mut servers {
        server.latency.observe(10 * MS, now);
    }
    run(&mut picker(Policy::PowerOfTwo), &mut servers, 80, 4_000);
    let flying: Vec<u32> = servers.iter().map(|server| server.in_flight).collect();
    for (got, expected) in flying.iter().zip([10_u32, 20, 50]) {
        assert!(got.abs_diff(expected) <= 5, "{flying:?}");
    }
}

#[test]
fn least_connections_fills_the_emptiest_first() {
    let mut servers = servers(&[1, 1, 4]);
    for (in_flight, expected) in [([3, 2, 9], 1), ([3, 2, 7], 2), ([0, 9, 1], 0)] {
        for (server, in_flight) in servers.iter_mut().zip(in_flight) {
            server.in_flight = in_flight;
        }
        let picked = picker(Policy::LeastConnections).pick(
            &servers,
            None,
            Instant::now(),
            &Tried::default(),
        );
        assert_eq!(picked, Some(expected), "{in_flight:?}");
    }
}

#[test]
fn power_of_two_avoids_the_slow_and_finds_out_about_the_new() {
    let now = Instant::now();
    let mut servers = servers(&[1, 1, 1, 1]);
    for (server, millis) in servers.iter_mut().zip([10, 10, 10, 200]) {
        server.latency.observe(millis * MS, now);
    }
    let mut picker = picker(Policy::PowerOfTwo);
    let mut tally = [0; 4];
    for _ in 0..1_000 {
        tally[picker.pick(&servers, None, now, &Tried::default()).unwrap()] += 1;
    }
    assert_eq!(
        tally[3], 0,
        "the other one drawn is always better: {tally:?}"
    );
    // Nobody knows the last one now: whenever it is drawn it gets one request, and then waits.
    servers[3].latency = PeakEwma::default();
    let drawn = |picker: &mut Picker, servers: &[ServerView]| {
        let picks = (0..1_000).filter_map(|_| picker.pick(servers, None, now, &Tried::default()));
        picks.filter(|index| *index == 3).count()
    };
    assert!((400..600).contains(&drawn(&mut picker, &servers)));
    servers[3].in_flight = 1;
    assert_eq!(drawn(&mut picker, &servers), 0);
}

#[test]
fn a_key_stays_with_its_server_whatever_the_order_of_the_list() {
    let policy = POLICIES[4];
    let now = Instant::now();
    let servers = servers(&[1, 3, 1, 2, 1]);
    let turned: Vec<ServerView> = servers.iter().rev().copied().collect();
    for key in 0..500_u32 {
        let key = key.to_be_bytes();
        let pick = |servers: &[ServerView], seed| {
            let mut picker = Picker::new(policy, S, seed);
            let index = picker.pick(servers, Some(&key), now, &Tried::default());
            servers[index.unwrap()].id
        };
        assert_eq!(
            pick(&servers, 1),
            pick(&turned, 2),
            "another core, another order"
        );
    }
}

#[test]
fn a_hash_without_a_key_is_drawn() {
    let servers = servers(&[1, 1, 1]);
    let (mut picker, now) = (picker(POLICIES[4]), Instant::now());
    let picks = (0..100).filter_map(|_| picker.pick(&servers, None, now, &Tried::default()));
    assert_eq!(picks.collect::<std::collections::BTreeSet<_>>().len(), 3);
}

#[test]
fn one_hot_key_is_spread_when_load_is_bounded() {
    let (mut servers, now) = (servers(&[1, 1, 1, 1]), Instant::now());
    let mut bounded = picker(POLICIES[5]);
    for _ in 0..100 {
        let index = bounded
            .pick(&servers, Some(b"/hot"), now, &Tried::default())
            .unwrap();
        servers[index].in_flight += 1;
    }
    let mut flying: Vec<u32> = servers.iter().map(|server| server.in_flight).collect();
    flying.sort_unstable();
    assert!(flying[3] <= 32, "125 % of 25, rounded up: {flying:?}");
    assert!(
        flying[3] > 28,
        "and the favourite has more than its share: {flying:?}"
    );
}

#[test]
fn a_server_that_came_back_is_loaded_slowly() {
    let now = Instant::now();
    let mut servers = servers(&[10, 10]);
    servers[1].recovered = Some(now);
    for policy in [Policy::RoundRobin, Policy::Random, POLICIES[4]] {
        for (after, least, most) in [(0, 30, 65), (25, 170, 230), (50, 300, 365), (100, 470, 530)] {
            let mut picker = Picker::new(policy, 100 * S, 0);
            let picks = (0..10_000_u32).filter_map(|key| {
                picker.pick(
                    &servers,
                    Some(&key.to_be_bytes()),
                    now + after * S,
                    &Tried::default(),
                )
            });
            let share = picks.filter(|index| *index == 1).count() / 10;
            assert!(
                (least..=most).contains(&share),
                "{policy:?} after {after} s: {share} ‰"
            );
        }
    }
}

#[test]
fn backups_wait_for_the_last_primary() {
    let (mut picker, now) = (picker(Policy::RoundRobin), Instant::now());
    let mut servers = servers(&[1, 1, 1]);
    servers[2].is_backup = true;
    servers[0].standing = Standing::Down;
    servers[1].in_flight_max = NonZeroU32::new(1);
    let mut pick = |servers: &[ServerView], tried: &Tried| {
        (
            picker.pick(servers, None, now, tried),
            survey(servers, tried),
        )
    };
    let (none, mut tried) = (Tried::default(), Tried::default());
    assert_eq!(pick(&servers, &none), (Some(1), Survey::Usable));
    servers[1].in_flight = 1;
    assert_eq!(
        pick(&servers, &none),
        (None, Survey::Full),
        "it waits for the primary"
    );
    tried.add(1);
    assert_eq!(
        pick(&servers, &tried),
        (Some(2), Survey::Usable),
        "which has refused it"
    );
    tried.add(2);
    assert_eq!(pick(&servers, &tried), (None, Survey::Nobody));
    servers[1].standing = Standing::Drain;
    assert_eq!(pick(&servers, &none), (Some(2), Survey::Usable));
}

#[test]
fn a_cookie_decides_and_survives_draining() {
    let now = Instant::now();
    let mut servers = servers(&[1, 1, 1]);
    let ids: Vec<u64> = servers.iter().map(|server| server.id).collect();
    let sticky = Sticky::new(SECRET, "app", ids.iter().copied()).unwrap();
    let cookie = sticky.value(ids[1]);
    assert!(sticky.names(cookie.as_str().as_bytes(), ids[1]));
    assert!(!sticky.names(cookie.as_str().as_bytes(), ids[0]));
    let mut picker = picker(Policy::RoundRobin).with_sticky(sticky);
    let picks = |picker: &mut Picker, servers: &[ServerView], tried: &Tried| {
        let key = Some(cookie.as_str().as_bytes());
        (0..30)
            .filter_map(|_| picker.pick(servers, key, now, tried))
            .collect::<Vec<_>>()
    };
    let only = |picks: Vec<usize>| picks.len() == 30 && picks.iter().all(|index| *index == 1);
    let never = |picks: Vec<usize>| picks.len() == 30 && picks.iter().all(|index| *index != 1);
    assert!(only(picks(&mut picker, &servers, &Tried::default())));
    servers[1].standing = Standing::Drain;
    assert!(only(picks(&mut picker, &servers, &Tried::default())));
    let mut tried = Tried::default();
    tried.add(1);
    assert!(never(picks(&mut picker, &servers, &tried)));
    servers[1].standing = Standing::Down;
    assert!(never(picks(&mut picker, &servers, &Tried::default())));
    servers[1].standing = Standing::Up;
    servers[1].in_flight_max = NonZeroU32::new(1);
    servers[1].in_flight = 1;
    assert!(never(picks(&mut picker, &servers, &Tried::default())));
    // Another order of the list is the same server.
    servers[1].in_flight = 0;
    servers.swap(1, 2);
    let picked = picks(&mut picker, &servers, &Tried::default());
    assert!(picked.iter().all(|index| *index == 2));
}

#[test]
fn a_cookie_is_worth_nothing_with_another_secret_scope_or_form() {
    let id = server_id("10.0.0.1:3000");
    let sticky = |secret: &[u8], scope| Sticky::new(secret, scope, [id]).unwrap();
    let own = sticky(SECRET, "app");
    let value = own.value(id);
    assert_eq!(value.as_str().len(), 32);
    assert_eq!(
        value,
        sticky(SECRET, "app").value(id),
        "on every core, after a restart"
    );
    for other in [sticky(b"fedcba9876543210", "app"), sticky(SECRET, "ap")] {
        assert!(!own.names(other.value(id).as_str().as_bytes(), id));
    }
    for wrong in [
        "",
        "0",
        &value.as_str()[1..],
        &value.as_str().to_uppercase(),
    ] {
        assert!(!own.names(wrong.as_bytes(), id), "{wrong}");
    }
    let error = Sticky::new(b"short", "app", []).unwrap_err();
    assert!(error.to_string().contains("5 bytes"), "{error}");
    let shown = format!("{own:?} {value:?}");
    assert!(
        !shown.contains(value.as_str()) && !shown.contains("0123"),
        "{shown}"
    );
}

#[test]
fn tried_servers_are_remembered_up_to_the_bound() {
    let mut tried = Tried::default();
    assert!(!tried.contains(0));
    for index in 0..=Tried::MAX {
        tried.add(index);
    }
    assert!(!tried.contains(0), "the first one is forgotten");
    assert!((1..=Tried::MAX).all(|index| tried.contains(index)));
    tried.add(usize::MAX);
    assert!(tried.contains(1));
}

fn view() -> impl Strategy<Value = ServerView> {
    let standing = prop_oneof![
        6 => Just(Standing::Up),
        1 => Just(Standing::Drain),
        2 => Just(Standing::Down),
    ];
    let max = prop::option::weighted(
        0.4,
        (1..4_u32).prop_map(|max| NonZeroU32::new(max).unwrap()),
    );
    let weight = prop_oneof![1 => Just(0), 6 => 1..20_u16, 1 => Just(u16::MAX)];
    let latency = prop::option::of(0..2_000_u32);
    (
        weight,
        prop::bool::weighted(0.2),
        standing,
        0..4_u32,
        max,
        latency,
        any::<bool>(),
    )
        .prop_map(
            |(weight, is_backup, standing, in_flight, in_flight_max, latency, has_recovered)| {
                let now = Instant::now();
                let mut ewma = PeakEwma::default();
                if let Some(millis) = latency {
                    ewma.observe(millis * MS, now);
                }
                ServerView {
                    weight,
                    is_backup,
                    standing,
                    in_flight,
                    in_flight_max,
                    latency: ewma,
                    recovered: has_recovered.then_some(now),
                    ..server(0, 1)
                }
            },
        )
}

/// Different servers, in any state.
fn views(most: usize) -> impl Strategy<Value = Vec<ServerView>> {
    prop::collection::vec(view(), 0..most).prop_map(|mut views| {
        for (number, view) in views.iter_mut().enumerate() {
            view.id = server(number, 1).id;
        }
        views
    })
}

proptest! {
    #[test]
    fn no_policy_breaks_a_rule(
        views in views(12),
        tried_indices in prop::collection::vec(0..12_usize, 0..4),
        keys in prop::collection::vec(prop::option::of(any::<u64>()), 1..20),
        policy in prop::sample::select(&POLICIES[..]),
        is_sticky: bool,
        seed: u64,
    ) {
        let now = Instant::now();
        let mut tried = Tried::default();
        tried_indices.iter().for_each(|index| tried.add(*index));
        let mut picker = Picker::new(policy, 10 * S, seed);
        if is_sticky {
            let ids = views.iter().map(|view| view.id);
            picker = picker.with_sticky(Sticky::new(SECRET, "app", ids).unwrap());
        }
        for key in keys {
            let key = key.map(u64::to_be_bytes);
            let key = key.as_ref().map(|key| &key[..]);
            let Some(index) = picker.pick(&views, key, now, &tried) else {
                prop_assert!(survey(&views, &tried) != Survey::Usable, "it gave up for nothing");
                continue;
            };
            prop_assert_eq!(survey(&views, &tried), Survey::Usable);
            let picked = &views[index];
            prop_assert_eq!(picked.standing, Standing::Up);
            prop_assert!(picked.weight > 0 && !picked.is_full() && !tried.contains(index));
            let primary = views.iter().enumerate().any(|(index, view)| {
                !view.is_backup && view.standing == Standing::Up && view.weight > 0
                    && !tried.contains(index)
            });
            prop_assert_eq!(picked.is_backup, !primary);
        }
    }

    #[test]
    fn round_robin_is_exact_over_a_round_and_never_far_off(
        weights in prop::collection::vec(1..30_u16, 1..8),
        seed: u64,
    ) {
        let (servers, now) = (servers(&weights), Instant::now());
        let mut picker = Picker::new(Policy::RoundRobin, S, seed);
        let round: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
        let mut tally = vec![0_u32; weights.len()];
        for pick in 1..=2 * round {
            tally[picker.pick(&servers, None, now, &Tried::default()).unwrap()] += 1;
            for (got, weight) in tally.iter().zip(&weights) {
                let fair = f64::from(pick) * f64::from(*weight) / f64::from(round);
                let off = (f64::from(*got) - fair).abs();
                prop_assert!(off <= weights.len() as f64, "{} picks for {}", got, fair);
            }
        }
        for (got, weight) in tally.iter().zip(&weights) {
            prop_assert_eq!(*got, 2 * u32::from(*weight));
        }
    }

    #[test]
    fn when_a_server_leaves_only_its_keys_move(
        weights in prop::collection::vec(1..5_u16, 2..10),
        leaving in any::<prop::sample::Index>(),
    ) {
        const KEYS: u32 = 2_000;
        let now = Instant::now();
        let before = servers(&weights);
        let leaving = leaving.index(weights.len());
        let mut after = before.clone();
        after[leaving].standing = Standing::Down;
        let mut picker = picker(POLICIES[4]);
        let mut moved: BTreeMap<usize, u32> = BTreeMap::new();
        for key in 0..KEYS {
            let key = key.to_be_bytes();
            let old = picker.pick(&before, Some(&key), now, &Tried::default()).unwrap();
            let new = picker.pick(&after, Some(&key), now, &Tried::default()).unwrap();
            if old == leaving {
                *moved.entry(new).or_default() += 1;
            } else {
                prop_assert_eq!(old, new, "its server is still there");
            }
        }
        let share = |weight: u16, all: u32| f64::from(weight) / f64::from(all);
        let all: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
        let moved_all: u32 = moved.values().sum();
        let expected = f64::from(KEYS) * share(weights[leaving], all);
        // Six standard deviations, and some for the tail of small numbers.
        let tolerance = |mean: f64| 6.0 * mean.sqrt() + 3.0;
        prop_assert!((f64::from(moved_all) - expected).abs() < tolerance(expected));
        // And they go to all others by weight, not to a neighbour.
        let rest = all - u32::from(weights[leaving]);
        for (index, weight) in weights.iter().enumerate().filter(|(index, _)| *index != leaving) {
            let expected = f64::from(moved_all) * share(*weight, rest);
            let got = f64::from(moved.get(&index).copied().unwrap_or(0));
            prop_assert!((got - expected).abs() < tolerance(expected), "{} for {}", got, expected);
        }
    }

    #[test]
    fn least_connections_leaves_nobody_with_less_load(
        views in views(10),
        seed: u64,
    ) {
        let mut picker = Picker::new(Policy::LeastConnections, S, seed);
        let now = Instant::now() + 2 * S;
        let Some(picked) = picker.pick(&views, None, now, &Tried::default()) else {
            return Ok(());
        };
        let load = |view: &ServerView| f64::from(view.in_flight) / f64::from(view.weight);
        for (index, view) in views.iter().enumerate() {
            let is_usable = view.standing == Standing::Up && view.weight > 0 && !view.is_full()
                && view.is_backup == views[picked].is_backup;
            prop_assert!(
                !is_usable || load(&views[picked]) <= load(view) + 1e-9,
                "{} has less load than {}", index, picked
            );
        }
    }

    #[test]
    fn drawn_servers_have_shares_by_weight(
        weights in prop::collection::vec(1..10_u16, 2..8),
        seed: u64,
    ) {
        const PICKS: u32 = 4_000;
        let (servers, now) = (servers(&weights), Instant::now());
        let all: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
        for policy in [Policy::Random, POLICIES[4]] {
            let mut picker = Picker::new(policy, S, seed);
            let mut tally = vec![0_u32; weights.len()];
            for key in 0..PICKS {
                // To a hash each one is another client.
                let key = (u64::from(key) ^ seed).to_be_bytes();
                tally[picker.pick(&servers, Some(&key), now, &Tried::default()).unwrap()] += 1;
            }
            for (got, weight) in tally.iter().zip(&weights) {
                let expected = f64::from(PICKS) * f64::from(*weight) / f64::from(all);
                let off = (f64::from(*got) - expected).abs();
                prop_assert!(off < 6.0 * expected.sqrt() + 3.0, "{:?}: {:?}", policy, tally);
            }
        }
    }

    #[test]
    fn whoever_is_bound_by_a_cookie_stays_while_his_server_does(
        weights in prop::collection::vec(1..5_u16, 2..8),
        leaving in any::<prop::sample::Index>(),
        policy in prop::sample::select(&POLICIES[..4]),
        seed: u64,
    ) {
        let mut servers = servers(&weights);
        let (leaving, now) = (leaving.index(weights.len()), Instant::now());
        let ids: Vec<u64> = servers.iter().map(|server| server.id).collect();
        let sticky = Sticky::new(SECRET, "app", ids.iter().copied()).unwrap();
        let cookies: Vec<_> = ids.iter().map(|id| sticky.value(*id)).collect();
        let mut picker = Picker::new(policy, S, seed).with_sticky(sticky);
        servers[leaving].standing = Standing::Down;
        for (bound_to, cookie) in cookies.iter().enumerate() {
            let key = Some(cookie.as_str().as_bytes());
            for _ in 0..5 {
                let picked = picker.pick(&servers, key, now, &Tried::default()).unwrap();
                match bound_to == leaving {
                    true => prop_assert_ne!(picked, leaving, "it is gone"),
                    false => prop_assert_eq!(picked, bound_to, "his server is still there"),
                }
            }
        }
    }

    #[test]
    fn bounded_load_holds_for_any_keys(
        weights in prop::collection::vec(1..5_u16, 1..8),
        keys in prop::collection::vec(0..4_u8, 1..200),
        percent in 100..300_u32,
    ) {
        let (mut servers, now) = (servers(&weights), Instant::now());
        let load_percent_max = NonZeroU32::new(percent);
        let mut picker = picker(Policy::Hash { load_percent_max });
        let all: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (flying, key) in keys.iter().enumerate() {
            let index = picker.pick(&servers, Some(&[*key]), now, &Tried::default()).unwrap();
            servers[index].in_flight += 1;
            let mean = (flying + 1) as f64 * f64::from(weights[index]) / all;
            let bound = (mean * f64::from(percent) / 100.0 - 1e-9).ceil();
            prop_assert!(f64::from(servers[index].in_flight) <= bound);
        }
    }

    #[test]
    fn no_forged_cookie_picks_a_server(cookie in prop::collection::vec(any::<u8>(), 0..40)) {
        let ids = [1, 2, 3];
        let sticky = Sticky::new(SECRET, "app", ids).unwrap();
        prop_assert!(ids.iter().all(|id| !sticky.names(&cookie, *id)));
        let value = sticky.value(2);
        for (at, byte) in value.as_str().bytes().enumerate() {
            let mut near = value.as_str().as_bytes().to_vec();
            near[at] = if byte == b'0' { b'1' } else { b'0' };
            prop_assert!(!sticky.names(&near, 2));
        }
    }
}
